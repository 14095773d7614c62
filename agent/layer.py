"""One layer of this node: its store, how it is shown and mounted, and when what failed is due again."""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass, field

from agent.layerstore import LayerStore

_RETRY_S = (0.1, 60.0)


class State(enum.StrEnum):
    """What `imgdist layers` says of a layer."""

    INDEXING = "indexing"
    FILLING = "filling"
    COMPLETE = "complete"
    SWITCHED = "switched"
    PLAIN = "plain"
    FAILED = "failed"


@dataclass
class Retry:
    """When something that failed is due again: after 0.1 s, then ever later, at last each minute."""

    at: float = 0.0
    delay_s: float = 0.0

    def failed(self) -> float:
        """It failed (again); in how many seconds it is due."""
        self.delay_s = min(max(2 * self.delay_s, _RETRY_S[0]), _RETRY_S[1])
        self.at = time.monotonic() + self.delay_s
        return self.delay_s

    def is_due(self) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self.at


@dataclass
class Layer:
    """A layer whose index is sealed. `shown` tells whether the view has it; `mounted_at` is in seconds of the monotonic
    clock; `lingers`: unmounted, while a mount that we cannot see still reads it through the view; `readers`: of a raw
    pack's blob; `removed`: its pack is gone from this node."""

    store: LayerStore
    state: State = State.FILLING
    shown: bool = False
    mounted: bool = False
    mounted_at: float = 0.0
    lingers: bool = False
    readers: int = 0
    removed: bool = False
    retry: Retry = field(default_factory=Retry)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pack_id(self) -> str:
        """The pack's identity, hex."""
        return self.store.pack_id.hex()
