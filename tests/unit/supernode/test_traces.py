"""Traces: merged in order, bounded, refused when malformed."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack

from imgdist.errors import ProtocolError, UsageError
from imgdist.wire.control import TRACE_ENTRIES_MAX, Trace
from supernode.traces import ENTRY, TRACE_MAX, Traces, decode, merge

LAYERS = tuple(f"sha256:{number:064x}" for number in range(5))
IMAGE = "sha256:" + "f" * 64


def trace(*chunks: tuple[int, int], layers: tuple[str, ...] = LAYERS) -> Trace:
    return Trace(0, layers, b"".join(ENTRY.pack(*chunk) for chunk in chunks))


def named(found: Trace) -> list[tuple[str, int]]:
    return [(found.layers[layer], chunk) for layer, chunk in ENTRY.iter_unpack(found.entries)]


def test_merge_keeps_the_first_order_and_appends() -> None:
    first = trace((1, 5), (0, 2))
    second = trace((0, 2), (1, 7), (2, 0), layers=(LAYERS[0], LAYERS[3], LAYERS[1]))
    merged = merge(first, second)
    assert named(merged) == [(LAYERS[1], 5), (LAYERS[0], 2), (LAYERS[3], 7), (LAYERS[1], 0)]
    assert merged.layers == (LAYERS[1], LAYERS[0], LAYERS[3])


def test_merge_is_bounded() -> None:
    full = trace(*((0, chunk) for chunk in range(TRACE_ENTRIES_MAX)))
    assert named(merge(full, trace((1, 1)))) == named(full)
    assert len(msgpack.encode(full)) <= TRACE_MAX


CHUNKS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**32 - 1)), max_size=30)


@given(CHUNKS, CHUNKS)
def test_merge_loses_nothing_and_is_idempotent(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    a, b = trace(*first), trace(*second)
    merged = merge(a, b)
    assert set(named(merged)) == set(named(a)) | set(named(b))
    assert len(set(named(merged))) == len(named(merged))
    assert merge(merged, b) == merged
    assert decode(msgpack.encode(merged)) == merged


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"v": 1, "layers": [], "entries": b""},
        {"v": 0, "layers": ["x"], "entries": b""},
        {"v": 0, "layers": [], "entries": ENTRY.pack(0, 0)},
        {"v": 0, "layers": list(LAYERS), "entries": b"12345"},
        {"v": 0, "layers": list(LAYERS), "entries": bytes(6 * (TRACE_ENTRIES_MAX + 1))},
        {"v": 0, "layers": list(LAYERS) * 300, "entries": b""},
    ],
)
def test_malformed_traces_are_refused(document: Any) -> None:
    with pytest.raises(ProtocolError, match=r"[Tt]race"):
        decode(msgpack.encode(document))


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(raw)


async def test_put_merges_also_when_two_put_at_once(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    assert await traces.get(IMAGE) is None
    assert not traces.exists(IMAGE)
    puts = [traces.put(IMAGE, msgpack.encode(trace((number % 5, number)))) for number in range(20)]
    await asyncio.gather(*puts)
    raw = await traces.get(IMAGE)
    assert raw is not None
    assert sorted(chunk for _, chunk in named(decode(raw))) == list(range(20))
    assert [path.name for path in tmp_path.iterdir()] == ["f" * 64]


async def test_a_damaged_file_is_replaced_and_a_bad_put_changes_nothing(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    (tmp_path / ("f" * 64)).write_bytes(b"\xc1 damaged")
    await traces.put(IMAGE, msgpack.encode(trace((0, 1))))
    before = await traces.get(IMAGE)
    with pytest.raises(ProtocolError):
        await traces.put(IMAGE, b"junk")
    assert await traces.get(IMAGE) == before
    for name in ("../x", "sha512:" + "0" * 128):
        with pytest.raises(UsageError, match="manifest digest"):
            await traces.put(name, msgpack.encode(trace((0, 1))))
