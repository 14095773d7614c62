"""Messages between view and agent: round trips, cut and random bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse import channel
from imgdist.errors import ProtocolError

MESSAGES = [
    channel.Hello(),
    channel.Add(2, 8192, b"2"),
    channel.Remove(1 << 40),
    channel.Synced(),
    channel.Ready(2, 4096, 8192, 31),
    channel.Held(2, 4096, 8192, 31),
    channel.Written(2, 0, 1 << 50),
    channel.Fail(2, 0, 4096, 5),
    channel.Added(2, 22),
    channel.Removed(2),
    channel.Miss(2, 1 << 45, 4096),
    channel.Ack(31),
    channel.Touched(((2, 0, 1), (3, 7, 256))),
    channel.Failed("image", 512),
    channel.Lapsed(2, 1 << 45, 4096, 60_250),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: channel.Message) -> None:
    decoded = channel.decode(message.encode())
    assert type(decoded) is type(message) and decoded == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_cut_or_lengthened_messages_are_refused_or_whole_again(message: channel.Message) -> None:
    data = message.encode()
    for cut in [data[:length] for length in range(len(data))] + [data + b"\0"]:
        try:
            other = channel.decode(cut)
        except ProtocolError:
            continue
        assert isinstance(other, channel.Touched | channel.Add) and other.encode() == cut


@given(st.binary(max_size=100))
def test_any_bytes_give_a_message_or_a_protocol_error(data: bytes) -> None:
    for kind in range(16):
        with contextlib.suppress(ProtocolError):
            channel.decode(bytes([kind]) + data)


@pytest.mark.parametrize(
    "message",
    [
        channel.Add(1, 4096, b"root"),
        channel.Add(2, 4095, b"odd"),
        channel.Add(2, 0, b"empty"),
        channel.Add(2, 4096, b"a/b"),
        channel.Add(2, 4096, b".."),
        channel.Add(2, 4096, b"x" * 14),
        channel.Fail(2, 0, 4096, 0),
        channel.Fail(2, 0, 4096, 512),
        channel.Ready(2, 0, 4096, 32),
        channel.Held(2, 0, 4096, 32),
        channel.Ready(2, 8192, 4096, 0),
        channel.Ready(2, 0, channel.RING_BUFFER_SIZE + 4096, 0),
    ],
    ids=str,
)
def test_senseless_values_are_refused(message: channel.Message) -> None:
    with pytest.raises(ProtocolError):
        channel.decode(message.encode())


def test_longest_touched_message_fits_a_datagram() -> None:
    entries = ((2, 0, 1),) * channel.TOUCHED_MAX
    assert len(channel.Touched(entries).encode()) <= channel.MESSAGE_MAX
