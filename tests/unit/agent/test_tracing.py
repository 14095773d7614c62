"""What a start-up trace holds, and when it is told."""

from __future__ import annotations

import pytest
from blake3 import blake3

from agent.tracing import QUIET_S, TraceRecorder, TraceUpdate, pack, unpack
from imgdist.errors import ProtocolError
from imgdist.pack.index import Index, IndexBuilder
from imgdist.pack.records import Chunk, DiffId, Metadata, Seal, Superblock, TarSplit, encode
from imgdist.wire.control import Trace

WINDOW_S = 30.0
IMAGE = "sha256:" + "1" * 64


def _index(data_chunks: int, blocks: int) -> Index:
    """Chunks of `blocks` blocks each from block 1 on, then one metadata chunk of one block."""
    builder = IndexBuilder()
    stream = builder.header
    for number in range(data_chunks):
        stream += builder.add(Chunk(blocks, blake3(bytes([number])).digest()))
    stream += builder.add(Chunk(1, blake3(b"m").digest(), metadata=True))
    stream += builder.add(Metadata(1 + data_chunks * blocks, 1))
    stream += builder.add(Superblock(bytes(128)))
    stream += builder.add(DiffId(bytes(32)))
    stream += builder.add(TarSplit(bytes(32), 1))
    return Index.load(stream + encode(Seal(builder.pack_id())))


def _recorder() -> TraceRecorder:
    recorder = TraceRecorder(WINDOW_S)
    recorder.open(IMAGE, {2: ("sha256:a", _index(4, 8)), 3: ("sha256:b", _index(4, 8))}, 0.0)
    return recorder


def test_chunks_come_in_order_of_first_touch_without_metadata_and_once() -> None:
    recorder = _recorder()
    recorder.started(IMAGE, 1.0)
    recorder.touched([(3, 9, 8), (2, 1, 1), (3, 33, 1), (2, 2, 1), (3, 16, 2), (9, 1, 1)], 1.5)
    (update,) = recorder.due(1.5 + QUIET_S)
    assert update.manifest_digest == IMAGE
    assert update.entries == (("sha256:b", 1), ("sha256:a", 0), ("sha256:b", 2))


def test_nothing_is_told_before_a_container_was_created() -> None:
    recorder = _recorder()
    recorder.touched([(2, 1, 1)], 1.0)
    assert recorder.due(10.0) == []
    recorder.started(IMAGE, 10.0)
    assert [update.entries for update in recorder.due(11.0)] == [(("sha256:a", 0),)]


def test_a_burst_is_told_when_it_is_over_and_later_ones_add_to_it() -> None:
    recorder = _recorder()
    recorder.started(IMAGE, 0.0)
    recorder.touched([(2, 1, 1)], 1.0)
    assert recorder.due(1.0 + QUIET_S / 2) == []
    assert len(recorder.due(1.0 + QUIET_S)) == 1
    recorder.touched([(2, 1, 1), (2, 9, 1)], 5.0)
    assert [update.entries for update in recorder.due(5.0 + QUIET_S)] == [(("sha256:a", 1),)]


def test_a_window_closes_and_what_is_read_later_is_no_start() -> None:
    recorder = _recorder()
    recorder.started(IMAGE, 0.0)
    recorder.touched([(2, 1, 1)], WINDOW_S - 0.1)
    assert len(recorder.due(WINDOW_S)) == 1
    recorder.touched([(2, 9, 1)], WINDOW_S + 1)
    assert recorder.due(WINDOW_S + 100) == []


def test_a_trace_survives_packing() -> None:
    entries = (("sha256:b", 7), ("sha256:a", 70_000), ("sha256:b", 0))
    packed = pack(TraceUpdate(IMAGE, entries, ("sha256:a", "sha256:unread"), 5))
    assert unpack(packed) == list(entries)
    assert (packed.layers, packed.start) == (("sha256:b", "sha256:a", "sha256:unread"), 5)


def test_pieces_of_a_start_share_a_number_and_name_every_layer_that_was_watched() -> None:
    recorder = _recorder()
    recorder.started(IMAGE, 0.0)
    pieces = []
    for at, block in ((1.0, 1), (5.0, 9)):
        recorder.touched([(2, block, 1)], at)
        pieces += recorder.due(at + QUIET_S)
    assert len({piece.start for piece in pieces}) == 1 and pieces[0].start
    assert all(piece.layers == ("sha256:a", "sha256:b") for piece in pieces)
    other = _recorder()
    other.started(IMAGE, 0.0)
    other.touched([(2, 1, 1)], 1.0)
    assert other.due(5.0)[0].start != pieces[0].start


@pytest.mark.parametrize(
    "trace", [Trace(1, (), b""), Trace(0, (), b"\0" * 6), Trace(0, ("sha256:a",), b"\0" * 5)], ids=str
)
def test_a_trace_that_makes_no_sense_is_refused(trace: Trace) -> None:
    with pytest.raises(ProtocolError):
        unpack(trace)


def test_blocks_outside_the_chunks_are_left_out() -> None:
    recorder = _recorder()
    recorder.started(IMAGE, 0.0)
    recorder.touched([(2, 0, 1), (2, 1 << 30, 4)], 0.0)
    assert recorder.due(WINDOW_S) == []
