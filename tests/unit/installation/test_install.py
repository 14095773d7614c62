"""What install writes below a prefix, for both containerds, and that uninstall leaves what was there before."""

from __future__ import annotations

import fcntl
import socket
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest

from imgdist.errors import ImgdistError, UnsupportedError
from imgdist.installation import layout, systemd
from imgdist.installation import uninstall as steps
from imgdist.installation.install import install
from imgdist.installation.layout import Layout
from imgdist.installation.uninstall import uninstall

CRI = "io.containerd.grpc.v1.cri"
DEBIAN = f'version = {{}}\n[plugins]\n  [plugins."{CRI}"]\n    [plugins."{CRI}".cni]\n      bin_dir = "/usr/lib/cni"\n'


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
        place.containerd.write_text(own.format(major + 1))
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
    assert len(install(place, 2, dry_run=True).written) == 5
    assert everything(place) == before


def test_what_others_wrote_or_edited_stays(place: Layout) -> None:
    place.unit.parent.mkdir(parents=True)
    place.unit.write_text("[Unit]\n")
    assert install(place, None).kept == [str(place.unit)]
    place.rules.write_text(place.rules.read_text() + "# mine\n")
    assert install(place, None).kept == [str(place.rules), str(place.unit)]
    removed = uninstall(place, place.config(), purges=False)
    assert {one["path"] for one in removed.kept} == {str(place.settings), str(place.unit), f"{place.rules}.edited"}


def test_an_edited_file_of_ours_for_containerd_stays(place: Layout) -> None:
    install(place, 2)
    mine = place.drop_in.read_text().replace('platform = "linux"', 'platform = "linux/arm64"')
    place.drop_in.write_text(mine)
    assert install(place, 2).kept == [str(place.drop_in)]
    assert place.drop_in.read_text() == mine


@pytest.mark.parametrize("imported", ["/etc/containerd/other.toml", "/etc/containerd/*.toml"])
def test_imports_of_an_own_configuration_are_added_to(place: Layout, imported: str) -> None:
    """A pattern's * stops at the next directory."""
    place.containerd.parent.mkdir()
    own = f'version = 3\nimports = ["{imported}"]\n'
    place.containerd.write_text(own)
    install(place, 2)
    told = tomllib.loads(place.containerd.read_text())
    assert told["imports"] == [imported, "/etc/containerd/conf.d/*.toml"]
    uninstall(place, place.config(), purges=False)
    assert place.containerd.read_text() == own


@pytest.mark.parametrize("imported", ["/etc/containerd/conf.d/*.toml", "conf.d/imgdist.toml"])
def test_what_is_imported_already_is_left_as_it_is(place: Layout, imported: str) -> None:
    place.containerd.parent.mkdir()
    place.containerd.write_text(f'version = 3\nimports = ["{imported}"]\n')
    assert str(place.containerd) not in install(place, 2).written


@pytest.mark.parametrize(
    ("own", "major"),
    [("root = '/x'\n", 1), ("not = = toml\n", 1), ("version = 2\n", 2), ("version = '3'\n", 2), ("root = '/x'\n", 2)],
    ids=["version 1", "no TOML", "version 2 beside 3", "no number", "no version"],
)
def test_a_configuration_that_is_beyond_us_changes_nothing(place: Layout, own: str, major: int) -> None:
    """A containerd 2.3 that imports a file of version 3 into one of version 2 does not start."""
    place.containerd.parent.mkdir()
    place.containerd.write_text(own)
    before = everything(place)
    with pytest.raises(UnsupportedError, match=r"containerd/config\.toml: "):
        install(place, major)
    assert everything(place) == before


def test_a_symlink_that_may_lead_out_of_the_prefix_is_refused(place: Layout, tmp_path: Path) -> None:
    (tmp_path / "host.toml").write_text("version = 3\n")
    place.containerd.parent.mkdir()
    place.containerd.symlink_to(tmp_path / "host.toml")
    with pytest.raises(UnsupportedError, match="symlink"):
        install(place, 2)
    assert (tmp_path / "host.toml").read_text() == "version = 3\n"


def test_what_tells_containerd_of_imgdist_still_is_named(place: Layout) -> None:
    """`containerd config migrate` writes the file anew, without marks."""
    install(place, 1)
    place.containerd.write_text(place.containerd.read_text().replace("  # imgdist install", ""))
    (said,) = uninstall(place, place.config(), purges=False).next
    assert str(place.containerd) in said and "imgdist" in said


def test_an_own_socket_is_told_as_it_is(place: Layout, tmp_path: Path) -> None:
    """Also where it begins as a shipped path does."""
    with place.settings.open("a") as settings:
        settings.write('snapshotter_socket = "/run/imgdist/own/s.sock"\n')
    install(place, 2)
    told = tomllib.loads(place.drop_in.read_text())["proxy_plugins"]["imgdist"]
    assert told["address"] == "/run/imgdist/own/s.sock" and told["exports"]["root"] == f"{tmp_path}/root"


def test_only_sockets_of_the_agent_are_removed(place: Layout) -> None:
    config = place.config()
    run = Path(config.run)
    run.mkdir()
    with ExitStack() as stack:
        for name in ("api.sock", "other.sock"):
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(run / name))
    uninstall(place, config, purges=False)
    assert [path.name for path in run.iterdir()] == ["other.sock"]


def test_a_root_that_another_agent_uses_is_left_alone(place: Layout) -> None:
    config = place.config()
    pack = Path(config.root, "packs/aa")
    pack.mkdir(parents=True)
    with Path(config.root, ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ImgdistError, match="an agent uses it"):
            uninstall(place, config, purges=True)
        assert pack.exists() and place.settings.exists()
    uninstall(place, config, purges=True)
    assert not Path(config.root).exists()


def test_the_unit_of_a_plain_node_is_the_shipped_one(tmp_path: Path) -> None:
    config = Layout.below(str(tmp_path), "/etc/containerd/config.toml").config()
    shipped = layout.shipped("systemd/imgdist-agent.service").splitlines()
    ours = layout.unit(config).splitlines()
    differing = [line for line, other in zip(ours, shipped, strict=True) if line != other]
    assert [line.partition("/")[0] for line in differing] == ["ExecStart=", "ExecReload="]
    assert differing[1].endswith(f" upgrade --run {config.run}")


def test_the_unit_has_time_for_the_stop_that_is_set_and_rules_name_files_as_the_kernel_does(
    place: Layout, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to("disk")
    with place.settings.open("a") as settings:
        settings.write("stop_timeout_s = 120.5\n")
    install(place, None)
    assert "TimeoutStopSec=151s\n" in place.unit.read_text()
    assert f'"{tmp_path}/disk/packs/*"' in place.rules.read_text()


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
    assert len(uninstall(place, place.config(), purges=True).removed) == 6
    assert not place.is_live(place.config()) and everything(place) == {}
