"""A supernode whose store was altered consistently, and three agents: every checksum holds, and the lie is found."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from forged_pack import forge
from parts import require_lazy_layers
from rig import logs
from rig.images import LayerTar, Pushed, Workshop

from imgdist.api import JsonApi
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import ImgdistError

_WAIT_S = 90.0
_RIGHT = random.Random(7).randbytes(6_000_000)


class Lie:
    """A registry, an image of one layer, and a supernode that hands out another pack for it."""

    def __init__(self, directory: Path, parts: ExitStack) -> None:
        self._directory, self._parts = directory, parts
        self._registry, self._listen = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        parts.enter_context(registry(directory / "registry", self._registry))
        layer = LayerTar().add("srv/").add("srv/data", _RIGHT).bytes()
        self.image: Pushed = Workshop(directory / "images", self._registry).push("app", [layer])
        supernode = self._supernode()
        supernode.preheat(self.image.reference)
        (digest,) = self.image.layer_digests
        self.honest: str = JsonApi(supernode.url, "supernode").get(f"/v1/layers/{digest}")["pack_id"]
        supernode.stop()
        self.forged = forge(directory / "s", self.honest)
        self.supernode = self._supernode()
        self._agents = 0

    def _supernode(self) -> Supernode:
        return self._started("s", self._listen)

    def _started(self, name: str, listen: str) -> Supernode:
        made = Supernode(self._directory / name, listen, plain_http=[self._registry])
        return self._parts.enter_context(made)

    def honest_supernode(self) -> Supernode:
        """Another one, of its own root, that has converted nothing yet."""
        return self._started("t", f"127.0.0.1:{free_port()}")

    def revoked(self) -> list[str]:
        """As the supernode tells."""
        return list(JsonApi(self.supernode.url, "supernode").get("/v1/revoked"))

    def node(self, *settings: str, supernodes: Sequence[Supernode] = ()) -> Node:
        """Started; nothing is mounted."""
        self._agents += 1
        quick = ["fill.quiet_s=0", "switch.idle_s=0.2", "stop_timeout_s=0", "verify.delay_s=0", *settings]
        directory = self._directory / f"a{self._agents}"
        urls = [supernode.url for supernode in supernodes or (self.supernode,)]
        return Node(self._parts.enter_context(Agent(directory, urls, settings=quick)), self.image)


class Node:
    """An agent."""

    def __init__(self, agent: Agent, image: Pushed) -> None:
        self.agent, self._image = agent, image

    def mount(self, name: str) -> Path:
        """Show the image at a new directory."""
        place = self.agent.directory / name
        self.agent.mount(self._image.reference, place)
        return place

    def pack(self, pack_id: str) -> dict[str, Any] | None:
        """What `imgdist layers` says of it."""
        return next((layer for layer in self.agent.layers() if layer["pack_id"] == pack_id), None)

    def wait(self, done: Any, what: str) -> None:
        wait_until(done, f"{self.agent.directory.name}: {what}", _WAIT_S)

    def knows(self, pack_id: str) -> bool:
        """Whether it is said to be revoked."""
        return bool((self.pack(pack_id) or {}).get("revoked"))

    def verify(self) -> tuple[int, dict[str, str]]:
        """`imgdist verify --json`: its exit code, outcomes by pack."""
        argv = [sys.executable, "-m", "imgdist.cli", "verify", "--json", "--run", str(self.agent.run)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_WAIT_S)
        return done.returncode, {row["pack_id"]: row["outcome"] for row in json.loads(done.stdout)}


@pytest.fixture
def lie(tmp_path: Path) -> Iterator[Lie]:
    require_lazy_layers("docker-registry")
    with logs.shown(tmp_path), ExitStack() as parts:
        yield Lie(tmp_path, parts)


def test_a_lie_is_found_by_an_idle_node_and_taken_back_everywhere(lie: Lie) -> None:
    finder, *others = [lie.node(), lie.node("verify.mode=none"), lie.node("verify.mode=none", "verify.action=block")]
    for node in others:
        assert (node.mount("m") / "srv/data").read_bytes() != _RIGHT, "everything but the layer's own digest is right"
    finder.mount("m")
    for node in (finder, *others):
        node.wait(lambda node=node: node.knows(lie.forged), "the lie is known")
    assert lie.revoked() == [lie.forged]

    for node in (finder, *others):
        place = str(node.agent.directory / "m")
        node.wait(lambda node=node, place=place: f"mount {place}" in _used_by(node, lie), "who runs on it is named")
        # Whoever mounts at that moment is named as well, to be on the safe side.
        node.wait(lambda node=node: f"built on pack {lie.honest}" in node.agent.log.read_text(), "it is replaced")
        node.wait(lambda node=node: _can(node, "again"), "what is new is built on the layer's own pack")
        assert (node.agent.directory / "again/srv/data").read_bytes() == _RIGHT
        assert "imgdist_packs_revoked 1.0" in node.agent.metrics()
        assert "imgdist_revoked_users 1.0" in node.agent.metrics()
        log = node.agent.log.read_text()
        assert f"pack {lie.forged} is revoked by" in log
        assert f"mount {place} runs on revoked pack {lie.forged}" in log

    (image,) = finder.agent.get("/v1/images")
    assert image["revoked"] == [], "the image is of right layers again"
    node = others[0]
    node.agent.umount(node.agent.directory / "m")
    node.wait(lambda: node.pack(lie.forged) is None, "nobody uses it: it goes")
    node.wait(lambda: (node.pack(lie.honest) or {}).get("state") in ("complete", "switched"), "whole")
    assert node.verify() == (0, {lie.honest: "proven"})


def test_a_lie_is_found_by_hand_and_a_node_that_was_away_hears_of_it(lie: Lie) -> None:
    finder = lie.node("verify.mode=none")
    finder.mount("m")
    finder.agent.wait_complete()
    code, outcomes = finder.verify()
    assert (code, outcomes[lie.forged]) == (1, "false")
    finder.wait(lambda: lie.revoked() == [lie.forged], "the supernode has looked for itself")
    late = lie.node("verify.mode=none")
    late.wait(lambda: _can(late, "m"), "it is taken over")
    assert (late.agent.directory / "m/srv/data").read_bytes() == _RIGHT
    assert late.pack(lie.forged) is None


def test_two_supernodes_that_disagree_are_both_named_and_the_lie_is_looked_into(lie: Lie) -> None:
    honest = lie.honest_supernode()
    node = lie.node("require_agreement=2", "verify.mode=none", supernodes=[lie.supernode, honest])
    with pytest.raises(ImgdistError, match="expected the same of 2") as refused:
        node.mount("m")
    for words in (lie.supernode.url, lie.forged, honest.url, lie.honest):
        assert words in str(refused.value)
    assert node.agent.layers()[0]["state"] == "plain", "an ordinary pull is left to containerd"
    node.wait(lambda: lie.revoked() == [lie.forged], "the supernode has looked for itself")
    node.wait(lambda: _can(node, "again"), "they agree")
    assert (node.agent.directory / "again/srv/data").read_bytes() == _RIGHT


def _used_by(node: Node, lie: Lie) -> list[str]:
    return list((node.pack(lie.forged) or {}).get("used_by", ()))


def _can(node: Node, name: str) -> bool:
    """Mount the image, on the right pack."""
    try:
        place = node.mount(name)
    except ImgdistError:
        (node.agent.directory / name).rmdir()
        return False
    if (place / "srv/data").read_bytes() == _RIGHT:
        return True
    node.agent.umount(place)
    place.rmdir()
    return False
