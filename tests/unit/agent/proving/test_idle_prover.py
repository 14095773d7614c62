"""When a node proves its packs, and which nodes do."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from fake_node import FakeStore
from hypothesis import given
from hypothesis import strategies as st

from agent.layer import Layer, State
from agent.proving.choice import PROVERS, is_chosen
from agent.proving.idle import RETRY_S, REVISIT_S, IdleProver, Mode
from imgdist.proving.verdict import Verdict

NODES = [f"{number:032x}" for number in range(40)]


@given(st.sets(st.sampled_from(NODES), min_size=1), st.integers(0, 1000))
def test_so_many_of_a_swarm_are_chosen(nodes: set[str], pack: int) -> None:
    chosen = [node for node in nodes if is_chosen(node, nodes, f"{pack:064x}")]
    assert len(chosen) == min(PROVERS, len(nodes))


@given(st.sets(st.sampled_from(NODES), min_size=1), st.sets(st.sampled_from(NODES)), st.integers(0, 1000))
def test_who_is_chosen_among_all_is_chosen_among_some(nodes: set[str], known: set[str], pack: int) -> None:
    for node in nodes:
        if is_chosen(node, nodes, f"{pack:064x}"):
            assert is_chosen(node, nodes & known, f"{pack:064x}")


def test_packs_are_spread_over_the_nodes() -> None:
    work = Counter(node for pack in range(400) for node in NODES if is_chosen(node, NODES, f"{pack:064x}"))
    assert sum(work.values()) == 400 * PROVERS
    assert max(work.values()) < 3 * 400 * PROVERS / len(NODES)


class World:
    """An idle prover whose looks end as `verdicts` say."""

    def __init__(self, mode: Mode = "all", *, fills: bool = True) -> None:
        self.now = 0.0
        self.layers: list[Layer] = []
        self.verdicts: list[Verdict] = []
        self.proven: set[str] = set()
        self.revoked: set[str] = set()
        self.others: list[str] = []
        self.asked: list[str] = []
        self.looks: list[str] = []
        prover: Any = SimpleNamespace(is_proven=lambda layer: layer.pack_id in self.proven, begin=self._begin)
        self.idle = IdleProver(
            prover, lambda: self.layers, mode, node=NODES[0], others=self._others,
            is_revoked=lambda pack: pack in self.revoked, delay_s=60, fills=fills, clock=lambda: self.now,
            chance=lambda: 0.5,
        )  # fmt: skip

    def layer(self, number: int, state: State = State.SWITCHED) -> Layer:
        store: Any = FakeStore(number)
        self.layers.append(Layer(store, state=state, shown=state is State.FILLING))
        return self.layers[-1]

    def _others(self, layer: Layer) -> list[str]:
        self.asked.append(layer.pack_id)
        return self.others

    def _begin(self, layer: Layer, when: str) -> Any:
        assert when == "idle"
        self.looks.append(layer.pack_id)
        outcome: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        outcome.set_result(self.verdicts.pop(0))
        return SimpleNamespace(wait=lambda: outcome)

    def next(self, now: float) -> Layer | None:
        self.now = now
        return self.idle.next(self.layers)


def test_a_pack_is_due_when_it_was_whole_for_a_while() -> None:
    world = World()
    layer = world.layer(1)
    assert world.next(0) is None
    assert world.next(89) is None
    assert world.next(90) is layer
    world.proven.add(layer.pack_id)
    assert world.next(91) is None


def test_nothing_is_proved_while_anything_is_fetched() -> None:
    world = World()
    layer, filling = world.layer(1), world.layer(2, State.FILLING)
    world.next(0)
    assert world.next(1000) is None
    filling.state = State.COMPLETE
    assert world.next(1001) is layer
    filling.state, filling.shown = State.FILLING, False
    assert world.next(1002) is layer, "one that nobody has mounted does not come by itself"


def test_what_is_not_filled_is_not_waited_for() -> None:
    world = World(fills=False)
    layer, _ = world.layer(1), world.layer(2, State.FILLING)
    world.next(0)
    assert world.next(90) is layer


def test_what_is_left_to_others_is_asked_about_seldom() -> None:
    world = World("some")
    world.others = NODES
    others = [layer for layer in map(world.layer, range(1, 30)) if not is_chosen(NODES[0], NODES, layer.pack_id)]
    world.layers = others
    for now in (0, 90, 95, 90 + REVISIT_S - 1):
        assert world.next(now) is None
    assert sorted(world.asked) == sorted(layer.pack_id for layer in others)
    world.others = []
    assert world.next(90 + REVISIT_S) in others, "they have gone"


def test_what_is_revoked_or_others_prove_is_left_out() -> None:
    world = World("some")
    layers = [world.layer(number) for number in range(1, 30)]
    world.next(0)
    world.others = NODES
    wanted = [layer for layer in layers if is_chosen(NODES[0], NODES, layer.pack_id)]
    seen = []
    while (layer := world.next(200)) is not None:
        seen.append(layer)
        world.revoked.add(layer.pack_id)
    assert seen == wanted
    assert 0 < len(wanted) < 12


async def test_what_could_not_be_proved_is_tried_again_ever_later() -> None:
    world = World()
    layer = world.layer(1)
    world.next(0)
    for failures, wait_s in enumerate((RETRY_S[0], 2 * RETRY_S[0], 4 * RETRY_S[0])):
        world.now += 100
        world.verdicts = [Verdict("unproven", "no supernode answers")]
        await world.idle.prove(layer)
        assert world.next(world.now + 1.5 * wait_s - 1) is None, failures
        assert world.next(world.now + 1) is layer


def test_a_layer_that_went_is_forgotten() -> None:
    world = World()
    layer = world.layer(1)
    world.next(0)
    world.layers.clear()
    world.next(50)
    world.layers.append(layer)
    assert world.next(100) is None, "it begins anew"
    assert world.next(190) is layer
