"""What install writes below a prefix, for both containerds, and that uninstall leaves what was there before."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from imgdist.errors import UnsupportedError
from imgdist.installation import layout, systemd
from imgdist.installation import uninstall as steps
from imgdist.installation.install import install
from imgdist.installation.layout import Layout
from imgdist.installation.uninstall import uninstall

CRI = "io.containerd.grpc.v1.cri"
DEBIAN = f'version = 2\n[plugins]\n  [plugins."{CRI}"]\n    [plugins."{CRI}".cni]\n      bin_dir = "/usr/lib/cni"\n'


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    """A machine whose agent has directories of its own: nothing runs there, nothing is mounted."""
    made = Layout.below(str(tmp_path / "m"), "/etc/containerd/config.toml")
    made.settings.parent.mkdir(parents=True)
    made.settings.write_text(f'root = "{tmp_path}/root"\nrun = "{tmp_path}/run"\n')
    return made


def everything(place: Layout) -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted(place.prefix.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("own", [None, DEBIAN], ids=["no configuration", "Debian's"])
@pytest.mark.parametrize("major", [1, 2])
def test_there_and_back(place: Layout, own: str | None, major: int) -> None:
    if own is not None:
        place.containerd.parent.mkdir()
        place.containerd.write_text(own)
    before = everything(place)

    done = install(place, major)
    assert done.kept == [] and done.next[-1].startswith("restart containerd")
    told = tomllib.loads((place.containerd if major == 1 else place.drop_in).read_text())
    config = place.config()
    assert told["proxy_plugins"]["imgdist"]["address"] == f"{config.run}/snapshotter.sock"
    if major == 1:
        assert told["version"] == 2 and told["plugins"][CRI]["containerd"]["snapshotter"] == "imgdist"
    else:
        assert told["proxy_plugins"]["imgdist"]["exports"]["root"] == config.root
    assert "RuntimeDirectory=" not in place.unit.read_text(), "its directories are not the shipped ones"
    assert f'"{config.run}/view/*"' in place.rules.read_text()

    again = install(place, major)
    assert again.written == [] and set(again.unchanged) == set(done.written)

    assert uninstall(place, config, purges=False, dry_run=True).removed != []
    removed = uninstall(place, config, purges=False)
    assert everything(place) == before
    assert removed.next == ["restart containerd; containers that run go on"]
    assert [one["path"] for one in removed.kept] == [str(place.settings)], "it was there before"
    assert uninstall(place, config, purges=False).removed == [], "again: nothing left to do"


def test_a_dry_run_writes_nothing(place: Layout) -> None:
    before = everything(place)
    assert len(install(place, 2, dry_run=True).written) == 3
    assert everything(place) == before


def test_what_others_wrote_or_edited_stays(place: Layout) -> None:
    place.unit.parent.mkdir(parents=True)
    place.unit.write_text("[Unit]\n")
    assert install(place, None).kept == [str(place.unit)]
    place.rules.write_text(place.rules.read_text() + "# mine\n")
    assert install(place, None).kept == [str(place.rules), str(place.unit)]
    removed = uninstall(place, place.config(), purges=False)
    assert {one["path"] for one in removed.kept} == {str(place.settings), str(place.unit), f"{place.rules}.edited"}


def test_imports_of_an_own_configuration_are_added_to(place: Layout) -> None:
    place.containerd.parent.mkdir()
    own = 'version = 3\nimports = ["/etc/containerd/other.toml"]\n'
    place.containerd.write_text(own)
    install(place, 2)
    told = tomllib.loads(place.containerd.read_text())
    assert told["imports"] == ["/etc/containerd/other.toml", "/etc/containerd/conf.d/*.toml"]
    uninstall(place, place.config(), purges=False)
    assert place.containerd.read_text() == own


@pytest.mark.parametrize("own", ["root = '/x'\n", "not = = toml\n"], ids=["version 1", "no TOML"])
def test_a_configuration_that_is_beyond_us_changes_nothing(place: Layout, own: str) -> None:
    place.containerd.parent.mkdir()
    place.containerd.write_text(own)
    before = everything(place)
    with pytest.raises(UnsupportedError, match=r"containerd/config\.toml: "):
        install(place, 1)
    assert everything(place) == before


def test_the_unit_of_a_plain_node_is_the_shipped_one(tmp_path: Path) -> None:
    config = Layout.below(str(tmp_path), "/etc/containerd/config.toml").config()
    shipped = layout.shipped("systemd/imgdist-agent.service").splitlines()
    ours = layout.unit(config).splitlines()
    differing = [line for line, other in zip(ours, shipped, strict=True) if line != other]
    assert [line.partition("/")[0] for line in differing] == ["ExecStart=", "ExecReload="]
    assert differing[1].endswith(f" upgrade --run {config.run}")


def test_the_agent_is_there_before_containerd_is_told_and_goes_after(
    place: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A containerd that finds no snapshotter drops its images."""
    calls: list[tuple[tuple[str, ...], bool, bool]] = []

    def systemctl(*words: str) -> None:
        calls.append((words, place.unit.exists(), place.drop_in.exists()))

    monkeypatch.setattr(systemd, "runs", lambda: True)
    monkeypatch.setattr(systemd, "systemctl", systemctl)
    monkeypatch.setattr(Layout, "is_this_machine", True)
    assert install(place, 2).next == ["restart containerd; containers that run go on"]
    uninstall(place, place.config(), purges=False)
    assert calls == [
        (("daemon-reload",), True, False),
        (("enable", "--now", systemd.UNIT), True, False),
        (("disable", "--now", systemd.UNIT), True, False),
        (("daemon-reload",), False, False),
    ]


def test_an_image_is_put_together_without_touching_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directories are named as this machine's are."""
    place = Layout.below(str(tmp_path), "/etc/containerd/config.toml")
    for name in ("_stop", "_clear", "_purge"):
        monkeypatch.setattr(steps, name, lambda *_, **__: pytest.fail("this machine was touched"))
    install(place, 2)
    assert 'address = "/run/imgdist/snapshotter.sock"' in place.drop_in.read_text()
    assert len(uninstall(place, place.config(), purges=True).removed) == 4
    assert not place.is_live(place.config()) and everything(place) == {}
