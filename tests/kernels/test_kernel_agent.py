"""A whole node on this kernel: its agent killed under readers, rescue after its holder, the switch to local files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layer_image import build_image
from load import KILLS, PATIENCE_S, Load, cached, direct
from parts import require
from rig.images import LayerTar, Pushed, Workshop
from rig.local_agent import LocalAgent
from viewrig import Readers

from imgdist import mountinfo
from imgdist.demo import caches
from imgdist.demo.ports import free_port
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.pack import BLOCK

_FILE_BYTES = 256 * 1024  # one chunk each, so that each is a miss of its own
_OFTEN = 8  # files that readers read all the time
_NEVER = 8
_KILLS_A_ROUND = 3
_FILES = _OFTEN + 2 * KILLS // _KILLS_A_ROUND + _NEVER
_LAZY = ("--set", "fill.mode=none", "--set", "trace.enabled=false")
_PATIENT = ("--set", "read.deadline_s=110")  # the most there is: an emulated agent takes up to half a minute to start
_START_S = 10.0

Report = Callable[[str, object], None]


class Node:
    """An agent with its own supernode, and an image of one layer that stays incomplete until it is read."""

    def __init__(self, directory: Path, address: str) -> None:
        rng = random.Random(5)
        self.files = {f"file{number:03}": rng.randbytes(_FILE_BYTES) for number in range(_FILES)}
        tar = LayerTar()
        for name, content in self.files.items():
            tar.add(name, content)
        layer = tar.bytes()
        build_image([layer], directory / "made")
        self.content = (directory / "made").read_bytes()
        self.image: Pushed = Workshop(directory / "images", address).push("app", [layer], compression="none")
        self.agent, self.place = LocalAgent(directory / "a", address, patience_s=PATIENCE_S), directory / "a/m"
        self.place.mkdir()

    def mount(self) -> str:
        """Mount the image; the loop device of its layer."""
        self.agent.done("mount", self.image.reference, str(self.place))
        (layer,) = (path for path in self.agent.mounts() if path.parent == self.agent.root / "l")
        entry = mountinfo.find(str(layer))
        assert entry is not None
        return entry.source

    def state(self) -> str:
        """Of the layer."""
        (state,) = self.agent.states().values()
        return state

    def untouched(self) -> Iterator[tuple[int, int]]:
        """Offset and size of a read in each chunk that no reader of `often` reads, in the order of the files."""
        for name, content in list(self.files.items())[_OFTEN:]:
            offset = self.content.index(content[:BLOCK])
            assert self.content[offset : offset + _FILE_BYTES] == content, name
            yield offset, BLOCK

    def often(self) -> list[tuple[Path, bytes]]:
        """The first files, for readers that never stop."""
        return [(self.place / name, content) for name, content in list(self.files.items())[:_OFTEN]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    require(os.geteuid() == 0, "root")
    require(shutil.which("docker-registry"), "docker-registry")
    address = f"127.0.0.1:{free_port()}"
    with registry(tmp_path / "registry", address):
        node = Node(tmp_path, address)
        try:
            yield node
        finally:
            node.agent.close()
            print(node.agent.log()[-8000:])


def kill_agent(node: Node) -> None:
    """As soon as there is one, however far it has come."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError, OSError):
            return node.agent.kill_child("agent")
        time.sleep(0.01)
    raise AssertionError("the holder started no agent")


def test_the_agent_killed_at_any_moment_under_readers(node: Node, report: Report) -> None:
    """One kill while it serves, the others at some moment of its successor's start. Each time, reads before and after
    the kills go where nothing was read before: only a living agent can answer them."""
    rng = random.Random(KILLS)
    node.agent.start(*_LAZY, *_PATIENT)
    device, untouched = node.mount(), node.untouched()
    readers = [cached(node.often())] * 3 + [direct(device, node.content[: 4 * _FILE_BYTES])] * 3
    start_s = 0.0
    with Load(readers).running() as load:
        for _ in range(KILLS // _KILLS_A_ROUND):
            misses = [Readers(device, [next(untouched)])]
            kill_agent(node)
            for _ in range(_KILLS_A_ROUND - 1):
                time.sleep(rng.uniform(0, start_s))
                kill_agent(node)
            begun = time.monotonic()
            misses.append(Readers(device, [next(untouched)]))
            for miss in misses:
                for (offset, size), data in miss.join(PATIENCE_S).items():
                    assert data == node.content[offset : offset + size]
            start_s = min(time.monotonic() - begun, _START_S)
            load.wait_for_progress(1)
    assert node.state() == "filling"  # what was not read has not come
    report(f"{KILLS} kills of the agent under 6 readers: right reads", load.reads)


def test_a_mount_whose_holder_was_killed_is_rescued(node: Node, report: Report) -> None:
    node.agent.start(*_LAZY)
    node.mount()
    (early, content), (late, later_content) = node.often()[:2]
    with early.open("rb") as file:
        assert file.read(BLOCK) == content[:BLOCK]
        node.agent.kill()
        with pytest.raises(OSError):
            late.read_bytes()
        node.agent.start(*_LAZY)
        wait_until(lambda: "the mount is right again" in node.agent.log(), "rescue", PATIENCE_S)
        caches.drop()
        assert content[:BLOCK] + file.read() == content
    assert late.read_bytes() == later_content
    report("holder and all killed: mount and open files right again", True)


def test_a_stop_switches_what_is_mounted(node: Node, report: Report) -> None:
    """Then no process of ours is there, and everything is."""
    node.agent.start(*_LAZY)
    device = node.mount()
    assert node.state() == "filling"
    with Load([cached(node.often())] * 2 + [direct(device, node.content)] * 2).running() as load:
        assert node.agent.stop() == 0
        caches.drop()
        load.wait_for_progress(5)
    assert {path.name: path.read_bytes() for path in node.place.iterdir()} == node.files
    assert node.agent.run / "view" not in node.agent.mounts()
    report("an agent's stop fills and switches under 4 readers", True)
