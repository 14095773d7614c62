"""Buffers between agent and view: whose they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fuse.ring import BUFFERS_USED, Ring


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring()
    yield ring
    ring.close()


def free(ring: Ring) -> int:
    """How many can be had."""
    slots = []
    while (slot := ring.acquire(keep=False)) is not None:
        slots.append(slot)
    for slot in reversed(slots):
        ring.give_back(slot)
    return len(slots)


def test_the_one_given_back_last_is_taken_first_until_none_is_left(ring: Ring) -> None:
    slot = ring.acquire(keep=False)
    assert slot is not None
    ring.lend(slot)
    ring.returned(slot)
    assert ring.acquire(keep=False) == slot
    assert [ring.acquire(keep=False) for _ in range(BUFFERS_USED)].count(None) == 1


@pytest.mark.parametrize("view_is_first", [False, True])
def test_what_is_kept_is_free_once_neither_side_reads_it(ring: Ring, view_is_first: bool) -> None:
    slot = ring.acquire(keep=True)
    assert slot is not None
    ring.lend(slot)
    ends = [ring.returned, ring.release] if view_is_first else [ring.release, ring.returned]
    ends[0](slot)
    assert free(ring) == BUFFERS_USED - 1
    ends[1](slot)
    assert free(ring) == BUFFERS_USED


def test_a_view_that_is_gone_reads_nothing(ring: Ring) -> None:
    slots = [ring.acquire(keep=keep) for keep in (True, False)]
    for slot in slots:
        assert slot is not None
        ring.lend(slot)
    ring.all_returned()
    assert free(ring) == BUFFERS_USED - 1
    assert slots[0] is not None
    ring.returned(slots[0])  # late: it means nothing any more
    assert free(ring) == BUFFERS_USED - 1
    ring.release(slots[0])
    assert free(ring) == BUFFERS_USED


def test_buffers_do_not_overlap(ring: Ring) -> None:
    ring.buffer(0)[:] = b"a" * len(ring.buffer(0))
    ring.buffer(1)[:] = b"b" * len(ring.buffer(1))
    assert bytes(ring.buffer(0)[-2:]) == b"aa"
