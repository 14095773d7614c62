"""The star of namespaces: who reaches whom, how fast, and that nothing of it stays, whoever ended it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require

from imgdist.demo.processes import Process, command, wait_until
from imgdist.demo.star import BURST_BYTES, Spoke, Star, goodput_bytes_per_s
from imgdist.errors import ImgdistError, UnsupportedError, UsageError

_SIZE = 1_000_000
_RATE = 16_000_000

_RECEIVER = """
import socket, sys
with socket.create_server((sys.argv[1], 9000)) as server:
    print("ready", flush=True)
    peer = server.accept()[0]
    size = 0
    while data := peer.recv(1 << 20):
        size += len(data)
    peer.sendall(b"%d" % size)
"""
_SENDER = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 9000), 5) as peer:
    started = time.monotonic()
    peer.sendall(bytes(int(sys.argv[2])))
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(20) == sys.argv[2].encode()
    print(time.monotonic() - started)
"""
_MAKER = """
import subprocess, sys, time
from imgdist.demo.star import Star
with Star(1) as star:
    (star.directory / "file").touch()
    child = subprocess.Popen([*star.nodes[0].inside, "sleep", "1000"])
    print(child.pid, star.nodes[0].namespace, star.directory, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    require(os.geteuid() == 0, "root")
    require(shutil.which("ip") and shutil.which("tc"), "iproute2")


@pytest.fixture
def star() -> Iterator[Star]:
    with Star(2) as made:
        yield made


def test_everyone_reaches_everyone(star: Star, tmp_path: Path) -> None:
    spokes = [star.datacenter, *star.nodes]
    assert len({spoke.address for spoke in spokes}) == 3
    for number, (source, target) in enumerate([(0, 1), (1, 2), (2, 0)]):
        _send(spokes[source], spokes[target], 1000, tmp_path / f"{number}.log")
    with Process("server", [*spokes[1].inside, *_python(_RECEIVER), spokes[1].address], tmp_path / "s.log") as server:
        server.wait_for_line("ready")
        with socket.create_connection((spokes[1].address, 9000), 5) as near:
            assert near.getsockname()[0] == star.near


def test_connections_are_controlled_as_linux_does_whatever_this_machine_prefers(star: Star) -> None:
    for spoke in star.nodes:
        way = command("ip", "-n", spoke.namespace, "route", "get", star.datacenter.address)
        assert "congctl cubic" in way


@pytest.mark.parametrize("shaped", ["up", "down"])
def test_a_link_is_shaped_both_ways(star: Star, shaped: str, tmp_path: Path) -> None:
    source, target = star.nodes
    (source if shaped == "up" else target).shape(_RATE)
    before = target.traffic()
    took = _send(source, target, _SIZE, tmp_path / "r.log")
    least = (_SIZE - 2 * BURST_BYTES) / goodput_bytes_per_s(_RATE)
    assert least < took < 4 * least
    crossed = target.traffic() - before
    assert _SIZE <= crossed.received < 1.1 * _SIZE
    assert 0 < crossed.sent < 0.1 * _SIZE
    (source if shaped == "up" else target).unshape()
    assert _send(source, target, _SIZE, tmp_path / "r2.log") < least


def test_delay_needs_netem(star: Star, tmp_path: Path) -> None:
    source, target = star.nodes
    if not star.can_delay:
        with pytest.raises(UnsupportedError, match="netem"):
            source.shape(_RATE, delay_ms=20)
        return
    source.shape(_RATE, delay_ms=20)
    assert _send(source, target, 1, tmp_path / "r.log") > 0.04


def test_two_stars_share_nothing(star: Star) -> None:
    with Star(1) as other:
        assert other.directory != star.directory
        assert other.near != star.near
        assert other.nodes[0].namespace not in {spoke.namespace for spoke in star.nodes}
    assert star.directory.is_dir()
    assert star.nodes[0].traffic().sent >= 0


def test_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Star(2) as star:
        (star.directory / "a").mkdir()
        command("mount", "-t", "tmpfs", "none", star.directory / "a")
        left = subprocess.Popen([*star.nodes[1].inside, "sleep", "1000"])
        _ = 1 / 0
    assert left.wait(5) == -signal.SIGKILL
    assert not star.directory.exists()
    assert _namespaces(star) == []
    assert not Path("/sys/class/net", star.directory.name).exists()


def test_what_a_killed_maker_left_is_removed_by_the_next() -> None:
    with subprocess.Popen([*_python(_MAKER)], stdout=subprocess.PIPE, text=True, cwd=_ROOT) as maker:
        assert maker.stdout is not None
        pid, namespace, directory = maker.stdout.readline().split()
        maker.kill()
    assert Path("/run/netns", namespace).exists() and Path(directory, "file").exists()
    with Star(1) as star:
        wait_until(lambda: not Path("/proc", pid).exists(), "the process in the old namespace gone")
        assert not Path(directory, "file").exists()
        assert star.nodes[0].namespace == namespace or not Path("/run/netns", namespace).exists()


def test_how_many_nodes() -> None:
    for nodes in (0, 1000):
        with pytest.raises(UsageError, match="expected 1 to"):
            Star(nodes)


def test_a_namespace_that_is_gone_is_an_error(star: Star) -> None:
    command("ip", "netns", "delete", star.nodes[0].namespace)
    with pytest.raises(ImgdistError):
        star.nodes[0].shape(_RATE)


_ROOT = Path(__file__).parents[2]


def _python(program: str) -> tuple[str, str, str]:
    return (sys.executable, "-c", program)


def _send(source: Spoke, target: Spoke, size: int, log: Path) -> float:
    """Seconds that `size` bytes take from namespace to namespace."""
    with Process("receiver", [*target.inside, *_python(_RECEIVER), target.address], log) as receiver:
        receiver.wait_for_line("ready")
        return float(command(*source.inside, *_python(_SENDER), target.address, str(size)))


def _namespaces(star: Star) -> list[str]:
    name = star.nodes[0].bridge
    return [path.name for path in Path("/run/netns").iterdir() if path.name in (name, *(f"{name}-{n}" for n in "01"))]
