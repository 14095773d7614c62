"""One release takes over from another while containers read: nobody notices, and what does not work is undone."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from parts import require, require_lazy_layers
from rig.containerds import Containerd, Setting, containerd
from rig.images import LayerTar, Pushed, Workshop, busybox_layer
from rig.releases import Release, UpgradedAgent, release
from rig.stack import free_port

from imgdist.demo import leftovers
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import ImgdistError
from imgdist.pack import BLOCK, CHUNK_MAX

pytestmark = pytest.mark.timeout(600)  # each upgrade starts five programs: 3 s, or 15 beside other work

_BIG = random.Random("big").randbytes(80_000_000)
_NEVER = random.Random("never").randbytes(5_000_000)
"""Not a byte of any other image: what a node has of one layer it copies to another."""
_LAZY = ("--set", "fill.mode=none", "--set", "trace.enabled=false", "--set", "read.deadline_s=110")
_STALL, _ABSENT_STALL = 1 / 20, 1 / 4
"""As much of an upgrade's time a read may take longer than the disk and a waking process: a machine that is busy makes
both longer. Nothing waits longer than if it took `_UPGRADE_MOST_S`, which is more than it takes beside other work."""
_UPGRADE_MOST_S = 20.0
_ABSENT_PAUSE_S = 0.1
"""As long as the next agent takes to serve: as a rule each upgrade meets a read of bytes that are not there."""
_WAKE_PAUSE_S = 0.002


class Readers:
    """Threads that read blocks of a file on a layer, each read past the page cache and verified.

    Three read what is present ("hit"), one the first block of chunk after chunk, which is not ("miss"), to the end. Two
    tell what is the machine's doing: one reads an ordinary file on the same disk ("disk"), one asks a process that does
    nothing else ("process").
    """

    def __init__(self, path: Path, content: bytes, ordinary: Path) -> None:
        self._path, self._content, self._ordinary = path, content, ordinary
        ordinary.write_bytes(content[: 16 * BLOCK])
        self._stop = threading.Event()
        self.wrong: list[str] = []
        self.stalls: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._read, args=(name, lambda rng: rng.randrange(16)), daemon=True)
            for name in ("hit-0", "hit-1", "hit-2", "disk")
        ]
        absent = iter(range(CHUNK_MAX // BLOCK, len(content) // BLOCK, CHUNK_MAX // BLOCK))
        misses = ("miss", lambda rng: next(absent, None), _ABSENT_PAUSE_S)
        self._threads.append(threading.Thread(target=self._read, args=misses, daemon=True))
        self._threads.append(threading.Thread(target=self._wake, daemon=True))

    def __enter__(self) -> Readers:
        for block in range(16):
            assert self._block(self._path, block) == self._content[block * BLOCK : (block + 1) * BLOCK]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a read was never answered"

    def longest(self, kind: str) -> float:
        """The longest read of that kind since this was asked last, in seconds."""
        names = [name for name in list(self.stalls) if name.startswith(kind)]
        return max((self.stalls.pop(name) for name in names), default=0.0)

    def _block(self, path: Path, number: int) -> bytes:
        buffer = mmap.mmap(-1, BLOCK)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(descriptor, [buffer], number * BLOCK)
            return buffer[:]
        finally:
            os.close(descriptor)

    def _read(self, name: str, choose: Callable[[random.Random], int | None], pause_s: float = 0.0) -> None:
        rng, path = random.Random(name), self._ordinary if name == "disk" else self._path
        while not self._stop.wait(pause_s * _patience()) and (number := choose(rng)) is not None:
            began = time.monotonic()
            try:
                data = self._block(path, number)
            except OSError as error:
                self.wrong.append(f"{name}: block {number}: {error}")
                return
            took = time.monotonic() - began
            self.stalls[name] = max(self.stalls.get(name, 0.0), took)
            if data != self._content[number * BLOCK : (number + 1) * BLOCK]:
                self.wrong.append(f"{name}: block {number}: wrong bytes")
                return

    def _wake(self) -> None:
        with subprocess.Popen(["cat"], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
            assert echo.stdin is not None and echo.stdout is not None
            while not self._stop.wait(_WAKE_PAUSE_S):
                began = time.monotonic()
                echo.stdin.write(b".")
                echo.stdout.read(1)
                self.stalls["process"] = max(self.stalls.get("process", 0.0), time.monotonic() - began)


class Site:
    """A registry, an image that is mounted and stays incomplete, and an agent of the release before this one."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory, self.workshop = directory, Workshop(directory / "images", address)
        self.old, self.new = release(directory / "old", "0.0.9"), release(directory / "new", "0.1.1")
        self.agent = UpgradedAgent(directory / "a", address)

    def mounted(self, *flags: str) -> Path:
        """Start the agent of the old release and mount the image; its directory."""
        layer = LayerTar().add("srv/").add("srv/big", _BIG).bytes()
        other = LayerTar().add("srv/").add("srv/never", _NEVER).bytes()
        self.image: Pushed = self.workshop.push("t/image", [busybox_layer(), layer, other])
        self.agent.begin(self.old, *_LAZY, *flags)
        place = self.directory / "m"
        place.mkdir()
        self.agent.done("mount", self.image.reference, str(place))
        return place

    def upgraded(self, to: Release) -> None:
        done = self.agent.upgrade(to)
        assert done.returncode == 0, done.stderr + self.agent.log()[-4000:]
        assert self.agent.version() == to.version


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require_lazy_layers("docker-registry")
    require(Path("/bin/busybox").exists(), "busybox-static")
    address = f"127.0.0.1:{free_port()}"
    with registry(tmp_path / "registry", address):
        made = Site(tmp_path, address)
        try:
            yield made
        finally:
            leftovers.unmount_below(made.directory / "m")
            made.agent.close()
            print(made.agent.log()[-12000:])


@contextmanager
def containers(daemon: Containerd, images: list[Pushed]) -> Iterator[list[float]]:
    """Image after image is pulled and a container of it started, as long as the block lasts; the seconds of each."""
    stop, took, failed = threading.Event(), [], []

    def work() -> None:
        for number, image in enumerate(images):
            if stop.wait(0.5):
                return
            began = time.monotonic()
            try:
                daemon.ctr("images", "pull", "--plain-http", "--snapshotter", "imgdist", image.reference)
                said = daemon.run(image.reference, f"c{number}", "/bin/cat", "/etc/word")
            except ImgdistError as error:
                failed.append(str(error))
                return
            if said != f"image {number}\n":
                failed.append(f"image {number} says {said!r}")
            took.append(time.monotonic() - began)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


@contextmanager
def read_for_ever(path: Path, chunks: Path) -> Iterator[threading.Thread]:
    """A read whose bytes no source has right: it waits as long as the deadline allows."""
    with chunks.open("r+b") as file:
        file.write(bytes(4_000_000))

    def read() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with suppress(OSError):  # at its deadline, or with the session
                os.preadv(descriptor, [mmap.mmap(-1, BLOCK)], 0)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield thread


def test_there_and_back_under_load(site: Site) -> None:
    """With one read that is never answered, and a containerd that pulls and starts all the while."""
    place = site.mounted()
    images = [
        site.workshop.push(
            f"t/i{number}",
            [
                busybox_layer(("etc/word", f"image {number}\n".encode())),
                LayerTar().add("more", random.Random(number).randbytes(4_500_000)).bytes(),
            ],
        )
        for number in range(24)
    ]
    never = next(layer for layer in site.agent.json("layers") if layer["digest"] == site.image.layer_digests[2])
    chunks = site.agent.root / "supernode/packs" / never["pack_id"] / "chunks"
    with (
        containerd(site.directory / "c", Setting("2"), site.agent.run / "snapshotter.sock", "none") as daemon,
        read_for_ever(place / "srv/never", chunks) as waiting,
        Readers(place / "srv/big", _BIG, site.directory / "ordinary") as readers,
        containers(daemon, images) as took,
    ):
        for to in (site.new, site.old, site.new):
            began, pulled = time.monotonic(), len(took)
            site.upgraded(to)
            upgrade_s = min(time.monotonic() - began, _UPGRADE_MOST_S)
            present_s, absent_s, disk_s, process_s = map(readers.longest, ("hit", "miss", "disk", "process"))
            seen = (
                f"-> {to.version} in {upgrade_s:.1f} s, {len(took) - pulled} images started; at most"
                f" present blocks {present_s:.3f} s, absent ones {absent_s:.3f} s, the disk {disk_s:.3f} s, a process"
                f" {process_s:.3f} s"
            )
            print(seen)
            assert not readers.wrong
            assert waiting.is_alive()
            assert present_s < disk_s + process_s + _STALL * upgrade_s, seen
            assert 0 < absent_s < disk_s + process_s + _ABSENT_STALL * upgrade_s, seen
    assert took


def _patience() -> float:
    """How much longer than on an idle machine anything takes here now: runnable processes for each processor."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_a_new_release_that_does_not_start_changes_nothing(site: Site) -> None:
    """Each of the three dies before it stands by: the processes that served do so still."""
    place = site.mounted()
    holder, children = site.agent.pid, site.agent.children()
    broken = {
        "supernode": ("supernode/app.py", "import asyncio"),
        "view": ("fuse/main.py", "import logging"),
        "agent": ("agent/app.py", "import asyncio"),
    }
    with Readers(place / "srv/big", _BIG, site.directory / "ordinary") as readers:
        for role, (file, line) in broken.items():
            to = release(site.directory / f"no-{role}", "0.2.0")
            to.broken(file, line, "raise SystemExit('no library: 5')")
            done = site.agent.upgrade(to)
            assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
            assert f"imgdist 0.0.9 serves on: the new {role} does not start" in done.stderr
            assert "no library: 5" in site.agent.log()
            assert (site.agent.version(), site.agent.pid, site.agent.children()) == ("0.0.9", holder, children)
        assert not readers.wrong


def test_a_new_release_that_does_not_serve_is_taken_back(site: Site) -> None:
    """View and agent die when it is their turn: those of before serve again, and so does the holder."""
    place = site.mounted()
    broken = {"view": ("fuse/main.py", "    slots = Slots("), "agent": ("agent/app.py", "    loop, stop, retire =")}
    with Readers(place / "srv/big", _BIG, site.directory / "ordinary") as readers:
        for role, (file, line) in broken.items():
            to = release(site.directory / f"no-{role}", "0.2.0")
            to.broken(file, line, "    raise SystemExit('no memory: 6')")
            done = site.agent.upgrade(to)
            assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
            assert f"imgdist 0.0.9 serves on: the new {role} does not serve" in done.stderr
            assert site.agent.version() == "0.0.9"
            assert all(b"no-" not in command for command in site.agent.commands())
            print(f"{role}: longest hit {readers.longest('hit'):.3f} s, longest miss {readers.longest('miss'):.3f} s")
        site.upgraded(site.new)
        assert not readers.wrong


def test_a_holder_that_does_not_load_or_read_is_refused(site: Site) -> None:
    site.mounted()
    children = site.agent.children()
    site.new.broken("agent/holder.py", "import json", "raise SystemExit('no holder: 7')")
    done = site.agent.upgrade(site.new)
    assert (done.returncode, "no holder: 7" in done.stderr) == (1, True), done.stderr
    later = release(site.directory / "later", "9.0.0")
    later.broken("agent/succession.py", "VARIABLE =", "VERSION, READABLE = 3, (2, 3)")
    done = site.agent.upgrade(later)
    assert done.returncode == 1
    assert "holder state: imgdist 0.0.9 writes version 1 and reads [1], 9.0.0 writes 3 and reads [2, 3]" in done.stderr
    assert site.agent.children() == children


def test_a_changed_configuration_takes_effect_and_a_wrong_one_touches_nothing(site: Site) -> None:
    file = site.directory / "agent.toml"
    file.write_text("[switch]\nidle_s = 3\n")
    site.mounted("--config", str(file))
    children = site.agent.children()
    for wrong, code, words in (
        ("[switch]\nidle_s = -1\n", 2, "switch.idle_s = -1"),
        (f'snapshotter_socket = "{site.directory}/none/s.sock"\n', 1, "cannot listen"),
    ):
        file.write_text(wrong)
        done = site.agent.upgrade(site.new)
        assert (done.returncode, done.stderr.count("\n"), words in done.stderr) == (code, 1, True), done.stderr
        assert (site.agent.children(), site.agent.version()) == (children, "0.0.9")
    other = site.directory / "s.sock"
    file.write_text(f'snapshotter_socket = "{other}"\n[switch]\nidle_s = 7\n')
    site.upgraded(site.new)
    assert any(b'"idle_s":7' in command for command in site.agent.commands())
    assert other.exists() and not (site.agent.run / "snapshotter.sock").exists()


def test_sighup_upgrades_to_what_is_installed(site: Site) -> None:
    """Installed: where the agent was started from, whatever is there by now."""
    installed = site.directory / "installed"
    installed.symlink_to(site.old.directory)
    site.old = Release(installed, site.old.version)
    site.mounted()
    installed.unlink()
    installed.symlink_to(site.new.directory)
    os.kill(site.agent.pid, signal.SIGHUP)
    wait_until(lambda: f"holder: imgdist {site.new.version} serves" in site.agent.log(), "the upgrade", 60)
    assert site.agent.version() == site.new.version


def test_twenty_upgrades_leave_nothing_behind(site: Site) -> None:
    place = site.mounted()
    site.upgraded(site.new)
    before, began = held(site.agent), time.monotonic()
    with Readers(place / "srv/big", _BIG, site.directory / "ordinary") as readers:
        for number in range(20):
            site.upgraded((site.old, site.new)[number % 2])
        assert not readers.wrong
        print(f"20 upgrades in {time.monotonic() - began:.0f} s: longest hit {readers.longest('hit'):.3f} s")
    (holder, *children), *others = before

    def is_as_before() -> bool:
        (now, *fds), *rest = held(site.agent)
        few = all(after < then + 10 for after, then in zip(fds, children, strict=True))  # connections come and go
        return now == holder and few and rest == others

    wait_until(is_as_before, f"as before: {before}, now {held(site.agent)}", 10)


def held(agent: UpgradedAgent) -> tuple[list[int], list[str], list[str]]:
    """Numbers of descriptors of the holder and its children, mounts, loop devices."""
    processes = [agent.pid, *agent.children()]
    fds = [len(os.listdir(f"/proc/{pid}/fd")) for pid in processes]
    return fds, sorted(map(str, agent.mounts())), sorted(agent.loops())


def test_no_agent_to_upgrade_is_one_line(tmp_path: Path) -> None:
    done = release(tmp_path / "r", "1").imgdist("upgrade", "--run", str(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/holder.sock: no agent that can be upgraded in place listens there" in done.stderr
