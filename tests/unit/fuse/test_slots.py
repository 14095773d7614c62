"""The memory that outlives a view: what one process wrote, the next one finds; no page faults later."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.protocol import READ, Request, free_slot, slot_request
from fuse.slots import PARKED_MAX, SIZE, SLOTS, Slots
from imgdist.errors import ProtocolError


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("slots-test")
    yield fd
    os.close(fd)


def test_successor_finds_requests_and_parked_entries(memory: int) -> None:
    first = Slots(memory)
    assert first.generation == 0
    parked = Request(READ, 1 << 63 | 77, 5, 1 << 44, 1 << 20, b"name")
    first.put(PARKED_MAX - 1, parked, 123)
    first.put(3, parked._replace(name=b""), 456)
    first.drop(3)
    slot = first.slot(SLOTS - 1)
    slot[:4], slot[4:8] = (48).to_bytes(4, "little"), (3).to_bytes(4, "little")

    second = Slots(memory)
    assert second.generation == 1
    assert [(entry.number, entry.request, entry.since_ns) for entry in second.parked()] == [
        (PARKED_MAX - 1, parked, 123)
    ]
    found = slot_request(second.slot(SLOTS - 1))
    assert found is not None and len(found) == 48
    free_slot(second.slot(SLOTS - 1))
    assert slot_request(first.slot(SLOTS - 1)) is None
    assert Slots(memory).generation == 2


def test_every_page_is_mapped_before_the_first_request(memory: int) -> None:
    """A fault with SIGKILL pending would make the kernel end a reader's request with EIO."""
    slots = Slots(memory)
    smaps = Path("/proc/self/smaps").read_text()
    area = re.search(r"memfd:slots-test.*?\nRss: +(\d+) kB", smaps, re.DOTALL)
    assert area is not None and int(area[1]) * 1024 == SIZE
    assert slots.generation == 0


def test_foreign_layout_is_refused(memory: int) -> None:
    os.ftruncate(memory, SIZE - 4096)
    with pytest.raises(ProtocolError, match="expected"):
        Slots(memory)
    os.ftruncate(memory, SIZE)
    os.pwrite(memory, b"OTHERMAG", 0)
    with pytest.raises(ProtocolError, match="stop the holder"):
        Slots(memory)
