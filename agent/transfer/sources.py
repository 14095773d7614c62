"""Who can be asked for chunks: supernodes, the agents that are neighbours, and for a short time others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from agent.swarm.policy import Policy, SourceKind
from imgdist.wire.client import OnChunk, OnHead, OnNumbers, OnPause, ignore
from imgdist.wire.requests import BodyRequest

RECEIVERS_MAX = 2
"""Agents tried of those that a busy source names, which are two of ours: then it is asked again."""
STRANGERS_MAX = 64
"""Agents beyond the neighbours that are remembered: the latest that supernodes named. Forgetting one ends what is asked
of it, so these are more than all requests under way (20) are sent to at once (a guess)."""


class ChunkSource(Protocol):
    """Somebody who has chunks. `fetch` is called by several threads at once and is bounded by time-outs.

    It calls `on_chunk(number, encoding, body)` in the order asked, as bodies arrive, unverified, and lets its
    exceptions through. Raises NotFoundError, TemporaryError and ProtocolError, never OSError of its own. `on_head` is
    called once an answer begins, before its chunks, `on_pause` before the thread waits for it or for more of them.
    """

    @property
    def kind(self) -> str:
        """The `source` label of the figures: peer or supernode."""

    @property
    def name(self) -> str:
        """Whom log messages name."""

    def fetch(
        self,
        request: BodyRequest,
        on_chunk: OnChunk,
        on_head: OnHead = ignore,
        on_numbers: OnNumbers = ignore,
        on_pause: OnPause | None = None,
    ) -> None:
        """Fetch chunks, as ChunkClient.fetch does; `on_numbers` is told which, where the source chooses them."""

    def probe(self, timeout_s: float) -> None:
        """Return if it gives a sign of life within about that time; raises as `fetch` does."""

    def renew(self) -> None:
        """It was away, and is back: what hangs is asked again at once, on fresh connections."""

    def close(self) -> None:
        """End fetches in progress."""

    def __hash__(self) -> int:
        """Of this very source: the policy knows sources by identity."""


class Sources:
    """Every source there is: the policy's by themselves, those that supernodes name by address. The caller locks."""

    def __init__(self, policy: Policy, connect: Callable[[str], ChunkSource | None]) -> None:
        self._policy = policy
        self._connect = connect
        self._joined: dict[Hashable, ChunkSource] = {}
        self._strangers: dict[str, ChunkSource | None] = {}
        self._closed = False
        self.has_met_agents = False
        """Whether there was ever another agent to ask: one that may ask this node, too."""

    def join(self, source: ChunkSource, kind: SourceKind, now: float, *, near: bool = False) -> None:
        """The source may be asked."""
        self.has_met_agents |= kind is SourceKind.PEER
        self._joined[source] = source
        self._policy.join(source, kind, near=near, now=now)

    def leave(self, source: ChunkSource) -> None:
        """It is gone."""
        self._joined.pop(source, None)
        self._policy.leave(source)

    def at(self, addresses: Iterable[str], now: float, *, strangers: bool) -> list[ChunkSource]:
        """Agents by their addresses, also those that are no neighbours or not: as many as are worth a try. Whoever
        named them knows nothing of how they treated this node: those that are silent, failed or lied are left out."""
        neighbours = {source.name: source for source in self._joined.values()}
        found: list[ChunkSource] = []
        for address in addresses:
            source = neighbours.get(address) or (self._stranger(address) if strangers else None)
            if source is not None and source not in found and self._policy.is_in_order(source, now):
                found.append(source)
            if len(found) == RECEIVERS_MAX:
                break
        return found

    def forsake(self, source: ChunkSource) -> None:
        """It failed or lied: one that is no neighbour, so that no policy remembers, is not asked again for long."""
        if source not in self._joined and self._strangers.get(source.name) is source:
            self._strangers[source.name] = None
            source.close()

    def name(self, source: Hashable) -> str:
        """A source's name."""
        joined = self._joined.get(source)
        return joined.name if joined is not None else str(source)

    def close(self) -> None:
        """Close every source; none is made any more."""
        self._closed = True
        for source in [*self._joined.values(), *self._strangers.values()]:
            if source is not None:
                source.close()

    def _stranger(self, address: str) -> ChunkSource | None:
        if self._closed:
            return None
        source = self._strangers.pop(address) if address in self._strangers else self._connect(address)
        self._strangers[address] = source  # the one named last stands last: requests may be under way there
        while len(self._strangers) > STRANGERS_MAX:
            oldest = self._strangers.pop(next(iter(self._strangers)))
            if oldest is not None:
                oldest.close()
        return source
