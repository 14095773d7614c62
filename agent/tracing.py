"""Start-up traces: which chunks a start touched, in order of first touch.

A window opens when an image's layers are mounted and closes some seconds after the last container was created from
it, of a clock that stands still while readers wait: a start over a slow link takes longer, and reads no less. What the
view reports in between, of that image's layers, is the trace; metadata chunks are left out, because they are always
fetched first. Pure: the clock comes with each call, uploading is the caller's.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from imgdist.errors import ProtocolError
from imgdist.pack import BLOCK
from imgdist.pack.index import Index
from imgdist.wire.control import Trace

ENTRIES_MAX = 65_536
"""Entries of one trace (layer, chunk): 16 GiB of start-up reads, far above any start."""

VERSION = 0
_ENTRY = struct.Struct("<HI")

QUIET_S = 2.0
"""A start is read in bursts; after this long without a new chunk what was gathered is worth telling."""


@dataclass(frozen=True, slots=True)
class TraceUpdate:
    """New entries of one image's trace: (layer digest, chunk number) in order of first touch. `layers` are all whose
    reads were seen; `start` is the same for all pieces of one start, and nobody else's."""

    manifest_digest: str
    entries: tuple[tuple[str, int], ...]
    layers: tuple[str, ...] = ()
    start: int = 0


@dataclass(slots=True)
class _Window:
    layers: dict[int, tuple[str, Index]]
    closes_at: float
    last_touch: float
    start: int
    started: bool = False
    seen: set[tuple[int, int]] = field(default_factory=set)
    fresh: list[tuple[str, int]] = field(default_factory=list)


class TraceRecorder:
    """Gathers the traces of all images that are starting on this node."""

    def __init__(self, window_s: float, number: Callable[[], int] = lambda: secrets.randbits(63) | 1) -> None:
        """`number` makes the numbers of starts: random, not 0."""
        self._window_s = window_s
        self._number = number
        self._windows: dict[str, _Window] = {}

    def open(self, manifest_digest: str, layers: Mapping[int, tuple[str, Index]], now: float) -> None:
        """Record reads of `layers` (node number: layer digest, index) for this image from `now` on."""
        window = self._windows.get(manifest_digest)
        if window is None:
            self._windows[manifest_digest] = _Window(dict(layers), now + self._window_s, now, self._number())
        else:
            window.layers.update(layers)
            window.closes_at = now + self._window_s

    def started(self, manifest_digest: str, now: float) -> None:
        """A container was created from the image: its start begins."""
        window = self._windows.get(manifest_digest)
        if window is not None:
            window.started = True
            window.closes_at = now + self._window_s

    def touched(self, touches: Iterable[tuple[int, int, int]], now: float) -> None:
        """The view's report: (node number, first block, blocks), in order."""
        for node, first, count in touches:
            for window in self._windows.values():
                layer = window.layers.get(node)
                if layer is not None:
                    self._touch(window, node, layer, first, count, now)

    def due(self, now: float, *, everything: bool = False) -> list[TraceUpdate]:
        """What should be told now; windows that have closed are forgotten. `everything`: the agent stops."""
        updates = []
        for manifest_digest, window in list(self._windows.items()):
            closed = everything or now >= window.closes_at
            quiet = window.started and now - window.last_touch >= QUIET_S
            if window.fresh and window.started and (closed or quiet):
                layers = tuple(dict.fromkeys(digest for digest, _ in window.layers.values()))
                updates.append(TraceUpdate(manifest_digest, tuple(window.fresh), layers, window.start))
                window.fresh.clear()
            if closed:
                del self._windows[manifest_digest]
        return updates

    def _touch(self, window: _Window, node: int, layer: tuple[str, Index], first: int, count: int, now: float) -> None:
        digest, index = layer
        for chunk in index.chunks_between(first * BLOCK, (first + count) * BLOCK):
            if index.is_metadata(chunk) or (node, chunk) in window.seen or len(window.seen) >= ENTRIES_MAX:
                continue
            window.seen.add((node, chunk))
            window.fresh.append((digest, chunk))
            window.last_touch = now


def pack(update: TraceUpdate) -> Trace:
    """An update as a document."""
    numbers: dict[str, int] = {}
    packed = bytearray()
    for digest, chunk in update.entries:
        packed += _ENTRY.pack(numbers.setdefault(digest, len(numbers)), chunk)
    for digest in update.layers:
        numbers.setdefault(digest, len(numbers))
    return Trace(VERSION, tuple(numbers), bytes(packed), update.start)


def unpack(trace: Trace) -> list[tuple[str, int]]:
    """(layer digest, chunk) in order. ProtocolError for a version or an entry that makes no sense."""
    if trace.v != VERSION:
        raise ProtocolError(f"trace has version {trace.v}, this release reads {VERSION}")
    try:
        return [(trace.layers[layer], chunk) for layer, chunk in _ENTRY.iter_unpack(trace.entries)]
    except (struct.error, IndexError):
        raise ProtocolError("trace holds an entry cut short, or of a layer that it does not name") from None
