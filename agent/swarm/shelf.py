"""What an agent serves to its neighbours: the bodies it kept, else raw chunks from the image; proven ones only."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from agent.frames import Frames
from imgdist.errors import NotFoundError
from imgdist.pack import codec
from imgdist.wire.answer import Row
from imgdist.wire.arrivals import Arrivals


class Chunks(Protocol):
    """Where a layer's chunks lie in its image (Index, GrowingIndex)."""

    @property
    def chunk_count(self) -> int:
        """How many there are."""

    def size(self, chunk: int) -> int:
        """Raw bytes."""

    def start(self, chunk: int) -> int:
        """Offset in the image."""

    def is_zero(self, chunk: int) -> bool:
        """Whether it is all zeros."""


class Served(Protocol):
    """What a shelf needs of a layer (LayerStore, EarlyStore)."""

    @property
    def node(self) -> int:
        """The layer's number on this machine."""

    @property
    def index(self) -> Chunks:
        """Its chunks."""

    @property
    def frames(self) -> Frames | None:
        """The bodies that were kept, if any are."""

    @property
    def image_fd(self) -> int:
        """Descriptor of its image, within `use`."""

    @property
    def is_proven(self) -> bool:
        """Whether what is marked present may be believed, within `use`."""

    def use(self) -> AbstractContextManager[bool]:
        """Keep the descriptors open within the block; False if they are closed already."""

    def has(self, chunk: int) -> bool:
        """Whether the chunk's verified bytes are in the image, within `use`."""


class Shelf:
    """Finds layers by what the wire calls them (a `ChunkShelf`). Thread-safe."""

    def __init__(
        self,
        lookup: Callable[[str], Served | None],
        expects: Callable[[int, int], bool] = lambda node, chunk: False,
    ) -> None:
        """`lookup` knows pack ids in hex and layer names (`sha256-<hex>-v<n>`), `expects(node, chunk)` says whether a
        chunk is on its way to us."""
        self._lookup = lookup
        self._expects = expects
        self._lock = threading.Lock()
        self._arrivals: dict[int, Arrivals] = {}
        self._served: dict[int, float] = {}

    def open(self, name: str) -> LayerReader | None:
        """The reader of a layer that is here, whole or not."""
        store = self._lookup(name)
        if store is None:
            return None
        self._served[store.node] = time.monotonic()
        return LayerReader(store, self._arrivals_of(store.node), self._expects)

    def has(self, name: str, numbers: Sequence[int]) -> bool:
        """Whether all of these chunks of a layer are here."""
        reader = self.open(name)
        return reader is not None and reader.has(numbers)

    def served_at(self, node: int) -> float | None:
        """When another agent last asked for chunks of a layer (seconds of the monotonic clock)."""
        return self._served.get(node)

    def arrived(self, node: int, chunk: int) -> None:
        """A chunk of a layer became present."""
        self._arrivals_of(node).add(chunk)

    def forget(self, node: int) -> None:
        """A layer was removed."""
        with self._lock:
            self._arrivals.pop(node, None)
            self._served.pop(node, None)

    def _arrivals_of(self, node: int) -> Arrivals:
        if (found := self._arrivals.get(node)) is not None:
            return found
        with self._lock:
            return self._arrivals.setdefault(node, Arrivals())


class LayerReader:
    """One layer's chunks (a `ChunkReader`). Holds up nobody who closes or removes the layer: what it reads from stays
    open as long as it is referenced."""

    def __init__(self, store: Served, arrivals: Arrivals, expects: Callable[[int, int], bool]) -> None:
        self.arrivals = arrivals
        self._expects = expects
        self.identity = store.node
        self.count = store.index.chunk_count
        self._store = store
        self._frames = store.frames
        self._image: int | None = None

    def row(self, number: int) -> Row:
        """Where a chunk's body is. Raises NotFoundError where it is not there (yet)."""
        if self._frames is not None and (found := self._frames.find(number)) is not None:
            return Row(self._frames.fd, *found)
        index = self._store.index
        with self._store.use() as usable:
            if not (usable and number < self.count and self._store.is_proven and self._store.has(number)):
                raise NotFoundError(f"chunk {number} is not here, or not yet")
            if index.is_zero(number):
                return Row(self._store.image_fd, 0, 0, codec.ZERO)
            if self._image is None:
                self._image = os.dup(self._store.image_fd)
                weakref.finalize(self, os.close, self._image)
        return Row(self._image, index.start(number), index.size(number), codec.RAW)

    def wait(self, numbers: Sequence[int], seconds: float) -> bool:
        """Return once these are here, are not on their way, or time is over; whether that took any time."""
        node, awaited = self.identity, [number for number in numbers if not self._is_here(number)]

        def is_over() -> bool:
            return not any(self._expects(node, number) and not self._is_here(number) for number in awaited)

        if not awaited or is_over():
            return False
        self.arrivals.wait(is_over, seconds)
        return True

    def has(self, numbers: Sequence[int]) -> bool:
        """Whether all of these are here."""
        return all(self._is_here(number) for number in numbers)

    def _is_here(self, number: int) -> bool:
        try:
            self.row(number)
        except NotFoundError:
            return False
        return True
