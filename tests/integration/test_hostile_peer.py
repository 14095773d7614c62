"""A member of the swarm that lies: everybody gets the image all the same, and no wrong byte of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require

from bench.node import image_of_this_machine
from bench.swarm_fill import fill
from bench.swarm_rig import PEER_PORT, Published, Rig
from imgdist.demo.processes import Process

_RATE = 20_000_000


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    require(os.geteuid() == 0, "root")
    require(Path("/dev/fuse").exists() and Path("/dev/loop-control").exists(), "FUSE and loop devices")
    for program in ("ip", "tc", "docker-registry"):
        require(shutil.which(program), program)
    with Rig(3) as made:
        yield made


@pytest.fixture(scope="module")
def published(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return rig.publish(image_of_this_machine(tmp_path_factory.mktemp("image") / "i", 1, 24_000_000), "app")


@pytest.mark.parametrize("first", [0, 2, 4, 6])
def test_a_liar_costs_time_only(rig: Rig, published: Published, first: int, tmp_path: Path) -> None:
    """Two agents, each with another lie: flipped, silent; stale, bomb; trickle, longer; absent, misframed."""
    rig.shape(_RATE)
    *spokes, seat = rig.spokes
    what = [f"{seat.address}:{PEER_PORT}", rig.supernode.url, published.reference, str(rig.supernode.root), str(first)]
    argv = [*seat.inside, sys.executable, "-m", "bench.hostile_peer", *what]
    with Process("hostile peer", argv, tmp_path / "liar.log") as liar:
        liar.wait_for_line("ready")
        with rig.agents(spokes) as nodes:
            done = fill(rig, nodes, published.reference)
        liar.stop()
        victims = json.loads(liar.written().splitlines()[-1])
    assert done.wrong_bytes == 0
    assert set(victims) <= {spoke.address for spoke in spokes}
    assert victims, "nobody was lied to: the test shows nothing"
    # The supernode gives each chunk at most once to each, and what was lost on the way.
    assert done.datacenter.sent < 2.5 * published.wire_bytes


def test_nobody_reads_the_registry_but_the_supernode(rig: Rig, published: Published) -> None:
    """And it only once."""
    assert published.origin_bytes < 1.01 * published.registry_bytes
    before = rig.registry_wrote_bytes()
    rig.unshape()
    with rig.agents(rig.spokes) as nodes:
        done = fill(rig, nodes, published.reference)
    assert done.wrong_bytes == 0
    assert rig.registry_wrote_bytes() - before < 10_000  # a manifest at most, and lines of its log
