"""Traces on disk: counted in, refused when malformed, bounded."""

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
from supernode.tracemerge import ENTRY, Kept, merge
from supernode.traces import TOLD_KEPT, TOTAL_MAX, UNUSED_S, Traces, decode, decode_kept

LAYERS = tuple(f"sha256:{number:064x}" for number in range(5))
IMAGE = "sha256:" + "f" * 64


def trace(*chunks: tuple[int, int], layers: tuple[str, ...] = LAYERS, start: int = 0) -> Trace:
    return Trace(0, layers, b"".join(ENTRY.pack(*chunk) for chunk in chunks), start)


def named(found: Trace) -> list[tuple[str, int]]:
    return [(found.layers[layer], chunk) for layer, chunk in ENTRY.iter_unpack(found.entries)]


def test_decoding_is_what_encoding_was() -> None:
    found = trace((1, 5), (0, 2))
    assert decode(msgpack.encode(found)) == found
    kept = merge(None, found)
    assert decode_kept(msgpack.encode(kept)) == kept


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
    puts = [traces.put(IMAGE, msgpack.encode(trace((number % 5, number), start=7))) for number in range(20)]
    await asyncio.gather(*puts)
    raw = await traces.get(IMAGE)
    assert raw is not None
    told = named(decode(raw))
    assert len(told) == 20 and sorted(chunk for _, chunk in told) == list(range(20))
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


async def test_what_nobody_uses_goes_and_the_oldest_when_all_are_too_large(tmp_path: Path) -> None:
    now = [1_000_000.0]
    images = ["sha256:" + letter * 64 for letter in "abcd"]
    report = msgpack.encode(trace((0, 1), (1, 2)))

    async def put(traces: Traces, image: str) -> None:
        await traces.put(image, report)
        await traces.get(image)  # which says when it was used

    def left() -> str:
        return "".join(sorted(path.name[0] for path in tmp_path.iterdir()))

    traces = Traces(tmp_path, total_max=TOTAL_MAX, clock=lambda: now[0])
    for image in images[:3]:
        await put(traces, image)
        now[0] += 10
    now[0] += UNUSED_S - 15
    await traces.get(images[0])
    await put(traces, images[3])
    assert left() == "acd"
    size = (tmp_path / ("a" * 64)).stat().st_size
    tight = Traces(tmp_path, total_max=2 * size, clock=lambda: now[0])
    now[0] += 1
    await put(tight, images[1])
    assert len(left()) == 2 and "b" in left() and "c" not in left()


async def test_a_crowd_that_starts_one_image_decodes_its_trace_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counting(raw: bytes) -> Kept:
        decoded.append(len(raw))
        return decode_kept(raw)

    traces = Traces(tmp_path)
    await traces.put(IMAGE, msgpack.encode(trace((0, 1))))
    monkeypatch.setattr("supernode.traces.decode_kept", counting)
    assert len(set(await asyncio.gather(*(traces.get(IMAGE) for _ in range(50))))) == 1
    assert len(decoded) == 1
    await traces.put(IMAGE, msgpack.encode(trace((0, 2))))
    raw = await traces.get(IMAGE)
    assert raw is not None and (LAYERS[0], 2) in named(decode(raw)), "what was added is told"
    (tmp_path / ("f" * 64)).unlink()
    assert await traces.get(IMAGE) is None


async def test_few_traces_are_kept_in_memory(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    for number in range(TOLD_KEPT + 3):
        image = f"sha256:{number:064x}"
        await traces.put(image, msgpack.encode(trace((0, number))))
        assert await traces.get(image) is not None
    assert len(traces._told) == TOLD_KEPT
