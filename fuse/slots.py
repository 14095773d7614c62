"""The memory that outlives a view: request slots and the table of parked requests, in one shared memfd.

Layout, in the machine's byte order: a header page (magic, version, slot count, table capacity, generation), SLOTS slots
of SLOT_SIZE bytes, PARKED_MAX table entries of ENTRY_SIZE bytes. The kernel writes each request straight into a slot;
a slot is freed after its request was answered or copied into the table, an entry after its answer. So whatever a view
held when it was killed stands here, and its successor answers it.

A page fault while a SIGKILL is pending makes the kernel end the request being read with EIO (measured: 14 in 60 kills,
0 with all pages touched before), and a page that was reclaimed would fault again: every page is touched and locked.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from fuse.protocol import Request
from imgdist.errors import ProtocolError

log = logging.getLogger("imgdist.view")

SLOTS = 8
SLOT_SIZE = 16384
"""The kernel wants at least 8192 bytes to read into; 16 KiB leave room for the longest request (max_write 4096)."""
PARKED_MAX = 4096
"""Bounds the reads that wait. The kernel keeps at most 1024 background requests (all loop reads) in flight."""
ENTRY_SIZE = 64
NAME_MAX = 16
"""Longest name kept in an entry; layer names are at most 13 characters (a node number in base 36)."""

_MAGIC = b"IMGDSLOT"
_VERSION = 1
_HEADER = Struct("=8sIIII")
_GENERATION_OFFSET = 20
_GENERATION = Struct("=I")
_ENTRY = Struct("=B3xIQQQIQ16s")  # state opcode unique node offset size since_ns name
_SLOTS_AT = mmap.PAGESIZE
_TABLE_AT = _SLOTS_AT + SLOTS * SLOT_SIZE
SIZE = _TABLE_AT + PARKED_MAX * ENTRY_SIZE
_USED = 1


class ParkedEntry(NamedTuple):
    """A parked request as it stands in the table: entry number, request, CLOCK_MONOTONIC ns since when it waits."""

    number: int
    request: Request
    since_ns: int


class Slots:
    """This process's mapping of the shared memory. `generation` counts the processes before this one."""

    def __init__(self, fd: int) -> None:
        """Map the memfd `fd`, laying it out if it is empty. Raises ProtocolError for the layout of another version."""
        if os.fstat(fd).st_size == 0:
            os.ftruncate(fd, SIZE)
        check_slots(fd)
        self._map = mmap.mmap(fd, SIZE)
        self._view = memoryview(self._map)
        for page in range(0, SIZE, mmap.PAGESIZE):
            self._map[page] = self._map[page]  # a write: the page must be writable without another fault
        _lock_in_memory(self._map)
        self.generation = self._next_generation()

    def slot(self, index: int) -> memoryview:
        """Slot `index`, to read() a request into."""
        start = _SLOTS_AT + index * SLOT_SIZE
        return self._view[start : start + SLOT_SIZE]

    def put(self, index: int, request: Request, since_ns: int) -> None:
        """Write entry `index`; its state goes in last, so that a kill leaves it either free or whole."""
        start = _TABLE_AT + index * ENTRY_SIZE
        opcode, unique, node, offset, size, name, _ = request
        _ENTRY.pack_into(self._map, start, 0, opcode, unique, node, offset, size, since_ns, name)
        self._map[start] = _USED

    def drop(self, index: int) -> None:
        """Free entry `index`."""
        self._map[_TABLE_AT + index * ENTRY_SIZE] = 0

    def parked(self) -> Iterator[ParkedEntry]:
        """The entries in use, in table order."""
        for index in range(PARKED_MAX):
            start = _TABLE_AT + index * ENTRY_SIZE
            if self._map[start] == _USED:
                _, opcode, unique, node, offset, size, since, name = _ENTRY.unpack_from(self._map, start)
                yield ParkedEntry(index, Request(opcode, unique, node, offset, size, name.rstrip(b"\0")), since)

    def _next_generation(self) -> int:
        magic, _, _, _, generation = _HEADER.unpack_from(self._map)
        if magic == bytes(8):
            _HEADER.pack_into(self._map, 0, _MAGIC, _VERSION, SLOTS, PARKED_MAX, 1)
            return 0
        _GENERATION.pack_into(self._map, _GENERATION_OFFSET, (generation + 1) & 0xFFFFFFFF)
        return int(generation)


def check_slots(fd: int) -> None:
    """Raise ProtocolError if the memfd `fd` has the layout of another version. Only looks: another view may use it."""
    size = os.fstat(fd).st_size
    if size not in (0, SIZE):
        raise ProtocolError(f"request slots: expected {SIZE} bytes, the memory has {size}")
    magic, version, slots, capacity, _ = _HEADER.unpack(os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
    if magic != bytes(8) and (magic, version, slots, capacity) != (_MAGIC, _VERSION, SLOTS, PARKED_MAX):
        raise ProtocolError(
            f"request slots: expected version {_VERSION} with {SLOTS} slots and {PARKED_MAX} entries, "
            f"found version {version} with {slots} and {capacity}; stop the holder and start it anew"
        )


def _lock_in_memory(memory: mmap.mmap) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(memory))) != 0:
        log.warning(
            "request slots stay evictable (mlock: %s); a view killed under memory pressure may lose a read",
            os.strerror(ctypes.get_errno()),
        )
