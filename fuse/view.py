"""The view's decisions: present -> read the image, else park the request and ask the agent.

One View stands behind both transports (fuse/device.py, fuse/libfuse.py). Any thread may call `handle`; none ever waits
for a chunk. The agent's messages come in on one thread (fuse/port.py).

The order that loses no read: a reader parks first and looks at the present map again afterwards; the agent marks
blocks first and says `Written` afterwards. Whichever is later sees the other.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable

from fuse import protocol
from fuse.answers import Answers, Replies
from fuse.channel import OLDEST, VERSION, Lapsed, Miss
from fuse.disk import Disk
from fuse.layer import Layer
from fuse.notes import Agent, Notes
from fuse.parking import Parked, Parking, Table
from fuse.protocol import ROOT_NODE, Request
from fuse.retries import Retries
from fuse.slots import NAME_MAX, ParkedEntry
from imgdist.pack import BLOCK

_LOOKS = frozenset({protocol.LOOKUP, protocol.GETATTR, protocol.OPEN, protocol.OPENDIR, protocol.READDIR})
_MILLISECONDS_MAX = (1 << 32) - 1
_ACKNOWLEDGED = frozenset({protocol.RELEASE, protocol.RELEASEDIR, protocol.DESTROY})


class View:
    """All layers, what is parked on them, and what was touched. Times are CLOCK_MONOTONIC nanoseconds."""

    def __init__(
        self,
        replies: Replies,
        agent: Agent,
        table: Table,
        adopted: Iterable[ParkedEntry] = (),
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._replies, self._agent, self._clock = replies, agent, clock
        self._layers: dict[int, Layer] = {}
        self._nodes: dict[bytes, int] = {}
        self._confirmed: set[int] = set()
        self._complete = False  # the list of layers has been whole once: what it lacks does not exist
        self._asking = False  # an agent that has named all its layers is there
        self._version = VERSION
        self.notes = Notes(agent, clock)
        self._retries = Retries()
        self.parking = Parking(table, self._show_parked, adopted)
        self._answers = Answers(replies, self.parking, self.notes, Disk())

    # Requests, from any thread.

    def handle(self, request: Request, buffer: memoryview) -> None:
        """Answer `request` or park it. `buffer` (protocol.MAX_READ bytes) is the caller's, for a read's data."""
        opcode, unique = request.opcode, request.unique
        if opcode == protocol.READ:
            self._read(request, buffer)
        elif opcode in _ACKNOWLEDGED:
            self._replies.error(unique, 0)
        elif opcode == protocol.INTERRUPT:
            self._interrupt(request)
        elif opcode in _LOOKS:
            self._look(request)
        elif opcode == protocol.STATFS:
            blocks = sum(layer.size_bytes for layer in list(self._layers.values())) // BLOCK
            self._replies.statfs(unique, blocks, len(self._layers))
        else:
            self._replies.error(unique, errno.EROFS if opcode in protocol.MODIFYING else errno.ENOSYS)

    def _read(self, request: Request, buffer: memoryview) -> None:
        layer = self._layers.get(request.node)
        if layer is None:
            self._unknown(request, errno.EIO)
            return
        offset = request.offset
        size = min(request.size, layer.size_bytes - offset)
        if size <= 0:
            self._replies.data(request.unique)
            return
        now = self._clock()
        layer.present.last_read_ns = now
        touched = layer.touch(offset, size)
        if not layer.has(offset, size) or not self._answers.from_image(layer, request.unique, buffer[:size], offset):
            self._park_read(layer, request, size, now)
        if touched is not None:  # only now: the port's thread, once woken, takes Python's lock from this one
            self.notes.touched(touched)

    def _park_read(self, layer: Layer, request: Request, size: int, now_ns: int) -> None:
        since_ns = self._retries.since(layer.node, request.offset, request.offset + size, now_ns)
        parked = self.parking.park(request, since_ns)
        if parked is None:
            self._note("table_full", request, "too many reads wait already, EIO")
            self._replies.error(request.unique, errno.EIO)
            return
        if layer.has(request.offset, size):
            self._answers.parked_from_image(layer, parked)
        elif self._asking:
            self._agent.put(Miss(layer.node, request.offset, size).encode())
        self.notes.ring_once()

    def _look(self, request: Request) -> None:
        opcode, unique = request.opcode, request.unique
        node = self._nodes.get(request.name, 0) if opcode == protocol.LOOKUP else request.node
        layer = self._layers.get(node)
        if layer is None and (node != ROOT_NODE or (opcode == protocol.READDIR and not self._complete)):
            self._unknown(request, errno.ENOENT)
        elif opcode == protocol.LOOKUP and layer is not None:
            self._replies.entry(unique, node, layer.size_bytes)
        elif opcode == protocol.GETATTR:
            self._replies.attr(unique, node, layer.size_bytes if layer else 0)
        elif opcode == protocol.READDIR:
            entries = sorted((layer.node, layer.name) for layer in list(self._layers.values()))
            self._replies.listing(unique, entries, request.offset, request.size)
        else:
            self._replies.opened(unique, node)

    def _unknown(self, request: Request, number: int) -> None:
        """Not there - or not told yet: a new view knows no layers until its agent has named them all."""
        if self._complete or len(request.name) > NAME_MAX:
            if request.opcode == protocol.READ:
                self._note("unknown_layer", request, "it is no layer, EIO")
            self._replies.error(request.unique, number)
            return
        parked = self.parking.park(request, self._clock())
        if parked is None:
            self._replies.error(request.unique, errno.EIO)
            return
        self.notes.ring_once()
        if self._complete:  # it became so before the request was parked: nobody will look at it again
            self._retry(parked)

    def _interrupt(self, request: Request) -> None:
        """The reader was killed: let it go. Not parked (yet): EAGAIN makes the kernel ask again."""
        parked = self.parking.find(request.target)
        if parked is None or not self._answers.parked_fails(parked, errno.EINTR):
            self._replies.error(request.unique, errno.EAGAIN)

    # Messages of the agent, from the port's thread.

    def add(self, layer: Layer) -> None:
        """Show `layer`, or take its new descriptors if it is known."""
        old = self._layers.get(layer.node)
        if old is not None and old.size_bytes == layer.size_bytes:
            layer.touched = old.touched
        self._layers[layer.node] = layer
        self._nodes[layer.name] = layer.node
        if old is not None and old.name != layer.name:  # only now: a LOOKUP may come at any moment
            self._nodes.pop(old.name, None)
        self._confirmed.add(layer.node)
        self.parking.recount(layer.node)

    def remove(self, node: int) -> None:
        """Forget a layer; what waits for it gets EIO."""
        layer = self._layers.pop(node, None)
        if layer is not None:
            self._nodes.pop(layer.name, None)
        self._confirmed.discard(node)
        for parked in self.parking.waiting(node):
            self._fail(parked, errno.EIO, "removed", "its layer was removed")

    def agent_came(self, version: int) -> None:
        """Another agent, which speaks this version of the channel."""
        self._version = version

    def agent_gone(self) -> None:
        """Nobody to ask: misses wait for the next agent, which names its layers anew."""
        self._asking = False
        self._confirmed.clear()

    def synced(self) -> None:
        """The agent has named all its layers: drop the others, look at everything parked again, ask for the rest."""
        for node in set(self._layers) - self._confirmed:
            self.remove(node)
        self._complete = self._asking = True
        for parked in self.parking.all():
            request = parked.request
            layer = self._layers.get(request.node)
            if request.opcode != protocol.READ or layer is None:
                self._retry(parked)
                continue
            size = min(request.size, layer.size_bytes - request.offset)
            if size <= 0 or layer.has(request.offset, size):
                self._answers.parked_from_image(layer, parked)
            else:
                self._agent.put(Miss(layer.node, request.offset, size).encode())

    def ready(self, node: int, start: int, data: memoryview) -> None:
        """Verified bytes `data` of the image at `start`: answer the reads that they complete.

        A layer that is not known (removed meanwhile, never added) has nobody waiting.
        """
        layer = self._layers.get(node)
        if layer is not None:
            for parked in self.parking.waiting(node):
                self._answers.parked_from_ring(layer, parked, start, data)

    def held(self, node: int, start: int, data: memoryview) -> None:
        """As `ready`, of bytes that the image will not have: reads that need others besides gather them."""
        layer = self._layers.get(node)
        if layer is not None:
            for parked in self.parking.waiting(node):
                self._answers.parked_gathers(layer, parked, start, data)

    def written(self, node: int, start: int, end: int) -> None:
        """Blocks of [start, end) were marked present: answer the reads that are complete now (the map says which)."""
        layer = self._layers.get(node)
        if layer is None:
            return
        for parked in self.parking.waiting(node):
            offset = parked.request.offset
            size = min(parked.request.size, layer.size_bytes - offset)
            if offset < end and offset + size > start:
                if layer.has(offset, size):
                    self._answers.parked_from_image(layer, parked)
                elif parked.pieces:
                    self._answers.parked_gathered(layer, parked)

    def fail(self, node: int, start: int, end: int, number: int) -> None:
        """Reads that wait for a byte of [start, end) end with errno `number`. Not sticky: a new read asks again."""
        for parked in self.parking.waiting(node):
            if parked.request.offset < end and parked.request.offset + parked.request.size > start:
                self._fail(parked, number, "source", f"the agent has no source for it ({os.strerror(number)})")

    # Time, from the port's thread.

    def expire(self, deadline_ns: int) -> None:
        """Fail with EIO what has waited longer than `deadline_ns`, and say which."""
        now = self._clock()
        for parked in self.parking.all():
            if now - parked.since_ns >= deadline_ns:
                self._lapse(parked, now)

    def flush_notes(self) -> None:
        """Log the failures; tell an agent that listens how many there were, and what was touched."""
        self.notes.flush(self._asking, lapses=self._version > OLDEST)

    def _retry(self, parked: Parked) -> None:
        """Handle a request that had to wait for the list of layers."""
        self._answers.settle(parked, lambda request: self.handle(request, memoryview(bytearray(request.size))))

    def _fail(self, parked: Parked, number: int, reason: str, text: str) -> None:
        if self._answers.parked_fails(parked, number):
            self._note(reason, parked.request, text)

    def _lapse(self, parked: Parked, now_ns: int) -> None:
        request, waited_ns = parked.request, now_ns - parked.since_ns
        if request.opcode == protocol.READ:  # before it is answered: the kernel may be back at once
            end = request.offset + request.size
            self._retries.failed(request.node, request.offset, end, parked.since_ns, now_ns)
        if self._answers.parked_fails(parked, errno.EIO):
            lapsed = Lapsed(request.node, request.offset, request.size, min(waited_ns // 1_000_000, _MILLISECONDS_MAX))
            text = f"no bytes, and no agent to say why, after {waited_ns / 1e9:.1f} s, EIO"
            self._note("deadline", request, text, lapsed)

    def _note(self, reason: str, request: Request, text: str, lapsed: Lapsed | None = None) -> None:
        layer = self._layers.get(request.node)
        name = layer.label if layer else f"of node {request.node}"
        self.notes.failure(reason, name, f"{request.size} bytes at {request.offset}: {text}", lapsed)

    def _show_parked(self, node: int, waiting: int) -> None:
        layer = self._layers.get(node)
        if layer is not None:
            layer.present.parked = waiting
