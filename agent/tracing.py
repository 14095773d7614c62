"""Start-up traces: which chunks a start touched, in order of first touch.

A window opens when an image's layers are mounted and closes some seconds after the last container was created from
it. What the view reports in between, of that image's layers, is the trace; metadata chunks are left out, because they
are always fetched first. Pure: the clock comes with each call, uploading is the caller's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
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
    """New entries of one image's trace: (layer digest, chunk number) in order of first touch."""

    manifest_digest: str
    entries: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class _Window:
    layers: dict[int, tuple[str, Index]]
    closes_at: float
    last_touch: float
    started: bool = False
    seen: set[tuple[int, int]] = field(default_factory=set)
    fresh: list[tuple[str, int]] = field(default_factory=list)


class TraceRecorder:
    """Gathers the traces of all images that are starting on this node."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._windows: dict[str, _Window] = {}

    def open(self, manifest_digest: str, layers: Mapping[int, tuple[str, Index]], now: float) -> None:
        """Record reads of `layers` (node number: layer digest, index) for this image from `now` on."""
        window = self._windows.get(manifest_digest)
        if window is None:
            self._windows[manifest_digest] = _Window(dict(layers), now + self._window_s, now)
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
                updates.append(TraceUpdate(manifest_digest, tuple(window.fresh)))
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


def pack(entries: Iterable[tuple[str, int]]) -> Trace:
    """(layer digest, chunk) in order, as a document."""
    numbers: dict[str, int] = {}
    packed = bytearray()
    for digest, chunk in entries:
        packed += _ENTRY.pack(numbers.setdefault(digest, len(numbers)), chunk)
    return Trace(VERSION, tuple(numbers), bytes(packed))


def unpack(trace: Trace) -> list[tuple[str, int]]:
    """(layer digest, chunk) in order. ProtocolError for a version or an entry that makes no sense."""
    if trace.v != VERSION:
        raise ProtocolError(f"trace has version {trace.v}, this release reads {VERSION}")
    try:
        return [(trace.layers[layer], chunk) for layer, chunk in _ENTRY.iter_unpack(trace.entries)]
    except (struct.error, IndexError):
        raise ProtocolError("trace holds an entry cut short, or of a layer that it does not name") from None
