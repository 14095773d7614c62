"""When a node proves its packs unasked: when it has nothing to fetch, one after the other, each pack once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from agent.layer import Layer, State
from agent.proving.choice import is_chosen
from agent.proving.prover import Prover

LOOK_S = 5.0
"""Between two looks for a pack that is due; a look costs a stat(2) for each."""
REVISIT_S = 300.0
"""When a pack that is proven, or others' to prove, is due again (a guess): neighbours go. Each of an idle node's packs
held against each neighbour at every look would take the event loop tens of milliseconds."""
RETRY_S = (600.0, 86_400.0)
"""When a pack that could not be proved is tried again: first, at most; doubling (guesses)."""

Mode = Literal["none", "some", "all"]


class IdleProver:
    """On the event loop. `node` is this node's id; `others(layer)` the ids of those that have the pack, too, as far as
    they are known. `is_revoked(pack_id)`: it needs no proof. A pack is due `delay_s` after it was first seen whole, or
    up to twice as long, so that nodes which fill together do not ask for the tar-split together. `fills`: whether
    layers that are shown become whole by themselves, which is then waited for."""

    def __init__(
        self,
        prover: Prover,
        layers: Callable[[], Sequence[Layer]],
        mode: Mode,
        *,
        node: str,
        others: Callable[[Layer], Collection[str]],
        is_revoked: Callable[[str], bool],
        delay_s: float,
        fills: bool = True,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._prover = prover
        self._layers = layers
        self._mode = mode
        self._node = node
        self._others = others
        self._is_revoked = is_revoked
        self._delay_s = delay_s
        self._fills = fills
        self._clock = clock
        self._chance = chance
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    async def run(self) -> None:
        """Prove what is due, until cancelled."""
        while self._mode != "none":
            await asyncio.sleep(LOOK_S)
            layer = self.next(self._layers())
            if layer is not None:
                await self.prove(layer)

    async def prove(self, layer: Layer) -> None:
        """Look at a layer, and remember when to look again if nothing is known then."""
        verdict = await self._prover.begin(layer, "idle").wait()
        failures = self._failures.pop(layer.pack_id, 0)
        if verdict.outcome != "proven":
            self._failures[layer.pack_id] = failures + 1
            first, most = RETRY_S
            self._due[layer.pack_id] = self._clock() + min(first * 2**failures, most) * (1 + self._chance())

    def next(self, layers: Sequence[Layer]) -> Layer | None:
        """The layer to prove now; None while there is something to fetch, or nothing is due."""
        whole = [layer for layer in layers if layer.state in (State.COMPLETE, State.SWITCHED)]
        here, now = {layer.pack_id for layer in layers}, self._clock()
        self._due = {pack_id: at for pack_id, at in self._due.items() if pack_id in here}
        self._failures = {pack_id: count for pack_id, count in self._failures.items() if pack_id in here}
        for layer in whole:
            self._due.setdefault(layer.pack_id, now + self._delay_s * (1 + self._chance()))
        if self._fills and any(layer.state is State.FILLING and layer.shown for layer in layers):
            return None
        for layer in sorted(whole, key=lambda layer: self._due[layer.pack_id]):
            if self._due[layer.pack_id] > now:
                break
            if self._is_wanted(layer):
                return layer
            self._due[layer.pack_id] = now + REVISIT_S
        return None

    def _is_wanted(self, layer: Layer) -> bool:
        if self._is_revoked(layer.pack_id) or self._prover.is_proven(layer):
            return False
        return self._mode == "all" or is_chosen(self._node, self._others(layer), layer.pack_id)
