"""A swarm on one machine: a registry, a supernode and agents that take an image's chunks from each other."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from parts import require_lazy_layers
from rig import logs
from rig.images import LayerTar, Pushed, Workshop
from rig.killing import kill_node

from imgdist.api import JsonApi
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import ImgdistError

_SIZE = 12_000_000
_FILES = {f"srv/{number}": random.Random(number).randbytes(1_000_000) for number in range(_SIZE // 1_000_000)}
_SLOW = 3_000_000
"""Bytes a second of a fill that something is to happen in."""
_SLOWER = 2 * _SLOW // 3
"""Of one who gives: who takes at `_SLOW` needs two of them, so it is not by chance that both give something."""
_MOSTLY = 0.65
"""Of a layer, from peers: until they are known, some tenths of a second, the supernode is asked; and beside them."""
_WAIT_S = 60.0


def _layer() -> bytes:
    layer = LayerTar().add("srv/")
    for name, content in _FILES.items():
        layer.add(name, content)
    return layer.bytes()


class Site:
    """Everything but agents, which `agent` adds."""

    def __init__(self, directory: Path, parts: ExitStack) -> None:
        self._directory, self._parts = directory, parts
        self._registry = f"127.0.0.1:{free_port()}"
        self._listen = f"127.0.0.1:{free_port()}"
        parts.enter_context(registry(directory / "registry", self._registry))
        self.supernode = self.start_supernode()
        self.image: Pushed = Workshop(directory / "images", self._registry).push("app", [_layer()])
        self.supernode.preheat(self.image.reference)
        self._agents = 0

    def start_supernode(self) -> Supernode:
        self.supernode = Supernode(self._directory / "s", self._listen, plain_http=[self._registry])
        return self._parts.enter_context(self.supernode)

    def kill_supernode(self) -> None:
        os.kill(self.supernode.pid, signal.SIGKILL)
        self.supernode.stop()

    def members(self) -> int:
        """As the tracker counts them."""
        count: int = JsonApi(self.supernode.url, "supernode").get("/v1/status")["swarm"]["members"]
        return count

    def agent(self, *settings: str) -> Node:
        """Started; nothing is mounted."""
        self._agents += 1
        quick = ["fill.quiet_s=0", "switch.idle_s=0.2", "stop_timeout_s=0", *settings]
        directory = self._directory / f"a{self._agents}"
        made = Agent(directory, [self.supernode.url], settings=quick)
        return Node(self._parts.enter_context(made), directory / "m", self.image)


class Node:
    """An agent and the image's place on it."""

    def __init__(self, agent: Agent, place: Path, image: Pushed) -> None:
        self.agent, self.place, self._image = agent, place, image

    def mount(self) -> None:
        self.agent.mount(self._image.reference, self.place)

    def swarm(self) -> dict[str, Any]:
        found: dict[str, Any] = self.agent.get("/v1/status")["swarm"]
        return found

    def layer(self) -> dict[str, Any]:
        (layer,) = self.agent.layers()
        return layer

    def peers(self) -> dict[str, dict[str, Any]]:
        """By node id."""
        return {peer["node"]: peer for peer in self.agent.get("/v1/peers") if peer["kind"] == "peer"}

    def wait(self, done: Any, what: str) -> None:
        wait_until(done, f"{self.place.parent.name}: {what}", _WAIT_S)

    def wait_complete(self) -> None:
        self.wait(lambda: self._state() in ("complete", "switched"), "complete")

    def _state(self) -> str:
        """Of the layer; empty while the agent is being started again."""
        try:
            return str(self.layer()["state"])
        except ImgdistError:
            return ""

    def wait_begun(self) -> None:
        """Some is here, some is not, and neighbours are known."""
        self.wait(lambda: self.peers() and self.layer()["present_bytes"] > _SIZE // 10, "filling")
        assert self.layer()["state"] == "filling"

    def check(self) -> None:
        """The image is what was pushed."""
        assert {name: (self.place / name).read_bytes() for name in _FILES} == _FILES

    def kill_agent(self) -> None:
        """SIGKILL for the agent's process alone: its holder starts it again."""
        holder = self.agent.pid
        for child in Path(f"/proc/{holder}/task/{holder}/children").read_text().split():
            if b"\0agent.main\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL for holder, view and agent."""
        kill_node(self.agent)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require_lazy_layers("docker-registry")
    with logs.shown(tmp_path), ExitStack() as parts:
        yield Site(tmp_path, parts)


def test_a_third_node_takes_an_image_from_the_two_before_it(site: Site) -> None:
    givers = [site.agent(f"swarm.up_bytes_per_s={_SLOWER}") for _ in range(2)]
    nodes = [*givers, site.agent(f"swarm.down_bytes_per_s={_SLOW}")]
    for node in nodes:
        node.mount()
        node.wait_complete()
        node.check()
    sources = nodes[2].layer()["sources"]
    assert sources["peer"] > _MOSTLY * _SIZE, sources
    assert sources["peer"] + sources.get("supernode", 0) < 1.1 * _SIZE, "nothing comes twice"

    peers = nodes[2].peers()
    assert peers.keys() == {node.swarm()["node"] for node in nodes[:2]}
    assert all(peer["received_bytes"] > 0.1 * _SIZE and peer["lies"] == 0 for peer in peers.values()), peers
    uploads = [line for line in nodes[0].agent.metrics().splitlines() if line.startswith("imgdist_upload_bytes_total{")]
    assert sum(float(line.split()[1]) for line in uploads) > 0.1 * _SIZE
    assert "imgdist_swarm_members 2.0" in nodes[0].agent.metrics().splitlines()
    assert site.members() == 3


def test_the_swarm_outlives_its_supernode_and_is_back_soon_after_it(site: Site) -> None:
    seed, *others = [site.agent(f"swarm.down_bytes_per_s={speed}") for speed in (0, _SLOW, _SLOW)]
    seed.mount()
    seed.wait_complete()
    for node in others:
        node.mount()
    for node in others:
        node.wait_begun()
    site.kill_supernode()
    for node in others:
        node.wait_complete()
        node.check()
        assert node.swarm()["tracker"] is None and len(node.peers()) == 2

    site.start_supernode()
    started = time.monotonic()
    for node in (seed, *others):
        node.wait(lambda node=node: node.swarm()["tracker"], "a member again")
    assert time.monotonic() - started < 10.0
    assert site.members() == 3
    late = site.agent(f"swarm.down_bytes_per_s={_SLOW}")
    late.mount()
    late.wait_complete()
    assert late.layer()["sources"]["peer"] > _MOSTLY * _SIZE, late.layer()["sources"]


def test_a_peer_that_dies_costs_nobody_its_image(site: Site) -> None:
    victim, witness, node = [site.agent(f"swarm.down_bytes_per_s={speed}") for speed in (0, 0, _SLOW)]
    for other in (victim, witness):
        other.mount()
        other.wait_complete()
    dead = victim.swarm()["node"]
    node.mount()
    node.wait(lambda: node.peers().get(dead, {}).get("received_bytes"), "takes from the victim")
    victim.kill()
    node.wait_complete()
    node.check()
    assert dead not in node.peers()
    witness.wait(lambda: dead not in witness.peers(), "left the dead")
    late = site.agent()
    late.mount()
    late.wait_complete()
    late.check()
    late.wait(lambda: late.peers().keys() >= {other.swarm()["node"] for other in (witness, node)}, "knows the living")
    assert dead not in late.peers()


def test_an_agent_that_is_killed_is_back_among_its_neighbours(site: Site) -> None:
    """They call it: it need not know anybody, nor a tracker."""
    seed, node = site.agent(), site.agent(f"swarm.down_bytes_per_s={_SLOW}")
    seed.mount()
    seed.wait_complete()
    node.mount()
    node.wait_begun()
    site.kill_supernode()
    node.kill_agent()
    node.wait_complete()
    node.check()
    seed.kill_agent()
    seed.wait(lambda: _answers(seed) and node.swarm()["node"] in seed.peers(), "found by its neighbour")
    assert seed.layer()["state"] in ("complete", "switched")


def _answers(node: Node) -> bool:
    """An agent that was killed a moment ago takes one to answer."""
    try:
        return bool(node.swarm())
    except ImgdistError:
        return False


def test_one_that_nobody_reaches_takes_part_all_the_same(site: Site) -> None:
    """As behind a network address translation: what it advertises does not answer."""
    seed = site.agent()
    seed.mount()
    seed.wait_complete()
    hidden = site.agent(f"peer_advertise=127.0.0.1:{free_port()}", f"swarm.down_bytes_per_s={_SLOW}")
    hidden.wait(lambda: hidden.swarm()["reachable"] is False, "the tracker has found out")
    hidden.mount()
    hidden.wait_complete()
    hidden.check()
    assert hidden.layer()["sources"]["peer"] > _MOSTLY * _SIZE, hidden.layer()["sources"]
    assert [peer["address"] for peer in seed.peers().values()] == [None]
