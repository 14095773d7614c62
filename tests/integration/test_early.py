"""First pulls through a registry that stops in the middle of a layer: what agents have before the seal, and keep."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from parts import require_lazy_layers
from rig import logs
from rig.images import LayerTar, Pushed, Workshop
from rig.killing import kill_node
from rig.valve import Valve

from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import ImgdistError

_SIZE = 16_000_000
_FILES = {f"srv/{number}": random.Random(number).randbytes(1_000_000) for number in range(_SIZE // 1_000_000)}
_PASSES = _SIZE * 3 // 4
"""What of the layer comes before its registry stops."""
_COMES = _SIZE * 6 // 10
"""Of that, what agents have at least: the converter and the decompressor keep some back."""
_WAIT_S = 60.0


def _layer(*, is_declined: bool = False) -> bytes:
    layer = LayerTar().add("srv/")
    for name, content in _FILES.items():
        layer.add(name, content)
    if is_declined:  # only its end says so
        layer.link("srv/link", "of/another/layer", hard=True)
    return layer.bytes()


class Site:
    """A registry behind a valve, a supernode; agents as `agent` adds them."""

    def __init__(self, directory: Path, parts: ExitStack) -> None:
        self._directory, self._parts = directory, parts
        self._listen = f"127.0.0.1:{free_port()}"
        real = f"127.0.0.1:{free_port()}"
        parts.enter_context(registry(directory / "registry", real))
        self.valve = parts.enter_context(Valve(real))
        self._workshop = Workshop(directory / "images", self.valve.address)
        self._mounting = parts.enter_context(ThreadPoolExecutor(4))
        parts.callback(self.valve.open)
        self.start_supernode()
        self._agents = 0

    def push(self, layer: bytes, name: str = "app") -> Pushed:
        image = self._workshop.push(name, [layer])
        self.valve.let(_PASSES)
        return image

    def start_supernode(self) -> None:
        self.supernode = Supernode(self._directory / "s", self._listen, plain_http=[self.valve.address])
        self._parts.enter_context(self.supernode)

    def kill_supernode(self) -> None:
        os.kill(self.supernode.pid, signal.SIGKILL)
        self.supernode.stop()

    def agent(self, image: Pushed, *settings: str) -> Node:
        """Started; it begins to mount the image."""
        self._agents += 1
        return self.again(self._directory / f"a{self._agents}", image, *settings)

    def again(self, directory: Path, image: Pushed, *settings: str) -> Node:
        """On what an earlier agent left there."""
        quick = ["fill.quiet_s=0", "switch.idle_s=0.2", "stop_timeout_s=0", *settings]
        agent = self._parts.enter_context(Agent(directory, [self.supernode.url], settings=quick))
        place = directory / f"m{len(list(directory.glob('m*')))}"
        return Node(agent, place, self._mounting.submit(agent.mount, image.reference, place))


class Node:
    """An agent, the image's place on it, and the mount under way."""

    def __init__(self, agent: Agent, place: Path, mounting: Future[None]) -> None:
        self.agent, self.place, self.mounting = agent, place, mounting

    @property
    def packs(self) -> list[str]:
        return sorted(path.name for path in (self.agent.root / "packs").iterdir())

    def layer(self) -> dict[str, Any]:
        (layer,) = self.agent.layers() or [{"present_bytes": 0, "state": "", "sources": {}}]
        return layer

    def wait(self, done: Any, what: str) -> None:
        wait_until(done, f"{self.place.parent.name}: {what}", _WAIT_S)

    def wait_early(self) -> None:
        """Most of the layer is here, which has no seal."""
        self.wait(lambda: self.layer()["present_bytes"] >= _COMES, "most chunks before the seal")
        assert self.layer()["state"] == "indexing" and not self.mounting.done()
        assert [name.partition("-")[0] for name in self.packs] == [".part"]

    def wait_complete(self) -> None:
        self.wait(lambda: self.layer()["state"] in ("complete", "switched"), "complete")

    def check(self) -> None:
        """The image is what was pushed, and nothing else is left."""
        assert {name: (self.place / name).read_bytes() for name in _FILES} == _FILES
        assert self.packs == [self.layer()["pack_id"]]

    def kill(self) -> None:
        """SIGKILL for holder, view and agent."""
        kill_node(self.agent)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require_lazy_layers("docker-registry")
    with logs.shown(tmp_path), ExitStack() as parts:
        yield Site(tmp_path, parts)


def test_most_of_a_layer_is_here_before_its_seal_and_comes_once(site: Site) -> None:
    image = site.push(_layer())
    nodes = []
    for _ in range(2):  # the second finds a neighbour that has most of it
        nodes.append(site.agent(image))
        nodes[-1].wait_early()
    early = nodes[1].layer()["sources"]
    assert early.get("peer", 0) > 0.1 * _SIZE, early
    site.valve.open()
    for node in nodes:
        node.mounting.result(_WAIT_S)
        node.wait_complete()
        node.check()
        sources = node.layer()["sources"]
        assert sum(sources.values()) < 1.1 * _SIZE, f"nothing comes twice: {sources}"
        assert "came before its seal" in node.agent.log.read_text()


def test_a_warm_layer_has_no_early_store(site: Site) -> None:
    image = site.push(_layer())
    site.valve.open()
    site.supernode.preheat(image.reference)
    node = site.agent(image)
    node.mounting.result(_WAIT_S)
    node.wait_complete()
    node.check()
    assert "before its seal" not in node.agent.log.read_text()


def test_an_agent_that_is_killed_leaves_nothing_and_starts_over(site: Site) -> None:
    image = site.push(_layer())
    node = site.agent(image)
    node.wait_early()
    node.kill()
    with pytest.raises(ImgdistError):
        node.mounting.result(_WAIT_S)
    assert node.packs != []
    again = site.again(node.agent.directory, image)
    again.wait_early()
    site.valve.open()
    again.mounting.result(_WAIT_S)
    again.wait_complete()
    again.check()


def test_a_layer_that_is_declined_at_its_end_leaves_nothing(site: Site) -> None:
    node = site.agent(site.push(_layer(is_declined=True)))
    node.wait_early()
    site.valve.open()
    with pytest.raises(ImgdistError, match="hard link"):
        node.mounting.result(_WAIT_S)
    node.wait(lambda: node.packs == [], "nothing is left")
    assert node.layer()["state"] == "plain" and node.layer()["present_bytes"] == 0


def test_a_supernode_that_dies_in_the_middle_costs_time_only(site: Site) -> None:
    image = site.push(_layer())
    node = site.agent(image)
    node.wait_early()
    site.kill_supernode()
    site.valve.open()
    site.start_supernode()
    node.mounting.result(_WAIT_S)
    node.wait_complete()
    node.check()


def test_a_supernode_that_stays_away_leaves_nothing(site: Site) -> None:
    node = site.agent(site.push(_layer()))
    node.wait_early()
    site.kill_supernode()
    with pytest.raises(ImgdistError):
        node.mounting.result(_WAIT_S)
    node.wait(lambda: node.packs == [], "nothing is left")


def test_a_stop_in_the_middle_leaves_nothing(site: Site) -> None:
    node = site.agent(site.push(_layer()))
    node.wait_early()
    node.agent.stop()
    with pytest.raises(ImgdistError):
        node.mounting.result(_WAIT_S)
    assert node.packs == []
