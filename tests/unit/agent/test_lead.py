"""A right trace is never held up, a wrong one costs a bounded amount."""

from __future__ import annotations

from agent.transfer.lead import LEAD_BYTES, Lead

CHUNK = 1 << 18
FIRST = LEAD_BYTES // CHUNK


def _lead(chunks: int) -> Lead:
    lead = Lead()
    for chunk in range(chunks):
        lead.named(2, chunk, CHUNK)
    return lead


def test_what_nobody_reads_is_fetched_no_further_than_the_lead() -> None:
    lead = _lead(2 * FIRST)
    fetched = 0
    while lead.is_left and fetched < 2 * FIRST:
        lead.landed(2, fetched)
        fetched += 1
    assert fetched == FIRST


def test_readers_that_follow_let_it_run_ahead_further() -> None:
    lead = _lead(4 * FIRST)
    for chunk in range(FIRST):
        lead.landed(2, chunk)
    assert not lead.is_left
    for chunk in range(FIRST // 2):
        lead.touched(2, chunk)
    for chunk in range(FIRST, 2 * FIRST - 1):
        assert lead.is_left
        lead.landed(2, chunk)
    lead.landed(2, 2 * FIRST)
    assert not lead.is_left


def test_a_reader_that_was_first_earns_as_well() -> None:
    lead = _lead(2 * FIRST)
    lead.touched(2, FIRST)
    lead.landed(2, FIRST)
    for chunk in range(FIRST):
        lead.landed(2, chunk)
    assert lead.is_left


def test_chunks_that_no_trace_names_do_not_count() -> None:
    lead = _lead(0)
    for chunk in range(2 * FIRST):
        lead.landed(2, chunk)
        lead.touched(3, chunk)
    assert lead.is_left


def test_a_layer_that_is_gone_and_a_trace_that_begins_take_nothing_along() -> None:
    lead = _lead(2 * FIRST)
    for chunk in range(FIRST):
        lead.landed(2, chunk)
    assert not lead.is_left
    lead.removed(2)
    assert lead.is_left
    for chunk in range(FIRST):
        lead.named(3, chunk, CHUNK)
        lead.landed(3, chunk)
    assert not lead.is_left
    lead.begin()
    assert lead.is_left
