"""What registry clients are told of the mirror, and that it is taken off again to the byte."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import UnsupportedError
from imgdist.installation import docker
from imgdist.installation.install import install
from imgdist.installation.layout import Layout
from imgdist.installation.uninstall import uninstall

URL = "http://127.0.0.1:7650"
THEIRS = 'server = "https://theirs.example"\n\n[host."https://theirs.example"]\n  capabilities = ["pull"]  # mine\n'


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    """A machine with containerd, Docker and Podman."""
    made = Layout.below(str(tmp_path / "m"), "/etc/containerd/config.toml")
    for path in (made.settings, made.docker, made.registries, made.containerd):
        path.parent.mkdir(parents=True)
    made.settings.write_text(f'root = "{tmp_path}/root"\nrun = "{tmp_path}/run"\n')
    made.containerd.write_text("version = 3\n")
    return made


def everything(place: Layout) -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted(place.prefix.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("is_there", [False, True], ids=["nothing there", "theirs"])
def test_there_and_back(place: Layout, is_there: bool) -> None:
    if is_there:
        place.hosts.parent.mkdir(parents=True)
        place.hosts.write_text(THEIRS)
        place.docker.write_text('{\n    "log-driver": "journald",\n    "registry-mirrors": [ "https://m.example" ]\n}')
        (place.registries.parent / "10-theirs.conf").write_text('[[registry]]\nprefix = "quay.io"\n')
    before = everything(place)
    done = install(place, 2)
    assert {str(place.hosts), str(place.docker), str(place.registries)} <= set(done.written)
    assert "systemctl reload docker, for its registry mirror" in done.next

    hosts = tomllib.loads(place.hosts.read_text())["host"]
    assert list(hosts)[-1] == URL and hosts[URL] == {"capabilities": ["pull", "resolve"]}
    assert json.loads(place.docker.read_text())["registry-mirrors"][0] == URL
    told = tomllib.loads(place.registries.read_text())["registry"]
    by_prefix = {entry["prefix"]: entry["mirror"] for entry in told}
    assert by_prefix["docker.io"] == [{"location": "127.0.0.1:7650/docker.io", "insecure": True}]
    assert ("quay.io" in by_prefix) is not is_there, "an entry of somebody else's is not replaced"
    cri = tomllib.loads(place.drop_in.read_text())["plugins"]["io.containerd.cri.v1.images"]
    assert cri["registry"]["config_path"] == "/etc/containerd/certs.d"

    again = install(place, 2)
    assert again.written == []
    removed = uninstall(place, place.config(), purges=False)
    assert everything(place) == before
    assert any("reload docker" in step for step in removed.next)


def test_no_mirror_no_word_of_it(place: Layout) -> None:
    place.settings.write_text(place.settings.read_text() + 'mirror_listen = ""\n')
    install(place, 2)
    assert not any(path.exists() for path in (place.hosts, place.docker, place.registries))
    assert "registry" not in place.drop_in.read_text()


@pytest.mark.parametrize("daemon", ["", '{"log-driver": "journald"}'], ids=["nothing there", "theirs"])
def test_a_mirror_that_moves_or_goes_is_named_nowhere_any_more(place: Layout, daemon: str) -> None:
    """Whoever listens there next would be believed."""
    if daemon:
        place.docker.write_text(daemon)
    settings, before = place.settings.read_text(), everything(place)
    install(place, 2)
    for moved in ('mirror_listen = "127.0.0.1:99"\n', 'mirror_listen = ""\n'):
        place.settings.write_text(settings + moved)
        done = install(place, 2)
        found = everything(place)
        assert not any("7650" in text for path, text in found.items()), moved
        assert "systemctl reload docker, for its registry mirror" in done.next
    assert {str(place.hosts), str(place.registries)} <= set(done.removed)
    assert install(place, 2).removed == []
    for path in (place.hosts, place.docker, place.registries):
        assert found.get(str(path)) == before.get(str(path))


def test_a_mirror_that_is_off_since_is_taken_off(place: Layout) -> None:
    install(place, 2)
    place.settings.write_text(place.settings.read_text() + 'mirror_listen = ""\n')
    uninstall(place, place.config(), purges=False)
    assert not any(path.exists() for path in (place.hosts, place.docker, place.registries))


def test_registries_and_addresses_are_those_of_the_settings(place: Layout) -> None:
    mine = 'mirror_listen = "0.0.0.0:99"\nallow_plain = true\nmirror_registries = ["registry.internal:5000"]\n'
    place.settings.write_text(place.settings.read_text() + mine)
    install(place, 2)
    (entry,) = tomllib.loads(place.registries.read_text())["registry"]
    assert entry["location"] == "registry.internal:5000"
    assert entry["mirror"][0]["location"] == "127.0.0.1:99/registry.internal_5000"
    assert "http://127.0.0.1:99" in tomllib.loads(place.hosts.read_text())["host"]


@pytest.mark.parametrize("own", ["mirrors", "configs"])
def test_mirrors_in_containerds_own_file_are_left_and_named(place: Layout, own: str) -> None:
    """Beside them CRI refuses to start with a config_path."""
    text = f'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.{own}."x"]\nendpoint = ["https://x"]\n'
    place.containerd.write_text(text)
    done = install(place, 1)
    assert "config_path" not in place.containerd.read_text()
    assert any(f"registry.{own}" in step for step in done.next)


@pytest.mark.parametrize("text", ["[]", "{", '{"registry-mirrors": 3}'])
def test_what_is_beyond_us_is_refused_before_anything_is_written(place: Layout, text: str) -> None:
    place.docker.write_text(text)
    before = everything(place)
    with pytest.raises(UnsupportedError, match=r"daemon\.json: expected"):
        install(place, 2)
    assert everything(place) == before


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.none() | st.lists(st.just("https://m"), max_size=2),
    st.sampled_from([None, 0, 4]),
)
def test_any_daemon_json_comes_back(others: dict[str, object], mirrors: list[str] | None, indent: int | None) -> None:
    before = json.dumps(others | ({} if mirrors is None else {"registry-mirrors": mirrors}), indent=indent)
    changed = docker.with_mirror(before, URL, "daemon.json")
    assert json.loads(changed) == {**others, "registry-mirrors": [URL, *(mirrors or [])]}
    assert docker.without_mirror(changed, URL) == before
    anew = json.dumps(json.loads(changed), indent=1)
    kept = {**others, "registry-mirrors": mirrors} if mirrors else others
    assert json.loads(docker.without_mirror(anew, URL)) in (kept, {**others, "registry-mirrors": mirrors or []})
