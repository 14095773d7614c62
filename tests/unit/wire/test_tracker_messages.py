"""The tracker's codec: round trips, bounds, what later versions may add, nothing but ProtocolError out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import ProtocolError, UsageError
from imgdist.wire import tracker
from imgdist.wire.address import Address
from imgdist.wire.tracker import Dead, Hello, Join, Leave, Peer, Peers, Progress, Refused, Seek, Share, Welcome

NODE = "0f" * 16
LAYER = f"sha256-{'a' * 64}-v0"
JOIN = Join(1, 1, NODE, "host", "10.0.0.1:7651", 7651, "rack 1", (Share(LAYER, 3, 9), Share("b" * 64, 9, 9)))
FROM_AGENT = [JOIN, Progress((Share(LAYER, 4, 9),)), Seek(()), Seek((LAYER,)), Dead((NODE,)), Leave()]
FROM_TRACKER = [
    Welcome(1, "10.0.0.1", "10.0.0.1:7651", None),
    Welcome(1, "", "", False),
    Peers((Peer(NODE, "[::1]:7651", ""),)),
    Refused("no"),
]
DECODERS = [tracker.decode_from_agent, tracker.decode_from_tracker, tracker.decode_offer, tracker.decode_hello]


@pytest.mark.parametrize("message", FROM_AGENT, ids=lambda message: type(message).__name__)
def test_what_an_agent_says_comes_back(message: tracker.FromAgent) -> None:
    assert tracker.decode_from_agent(tracker.encode(message)) == message
    with pytest.raises(ProtocolError):
        tracker.decode_from_tracker(tracker.encode(message))


@pytest.mark.parametrize("message", FROM_TRACKER, ids=lambda message: type(message).__name__)
def test_what_a_tracker_says_comes_back(message: tracker.FromTracker) -> None:
    assert tracker.decode_from_tracker(tracker.encode(message)) == message
    with pytest.raises(ProtocolError):
        tracker.decode_from_agent(tracker.encode(message))


def test_hello_comes_back() -> None:
    assert tracker.decode_hello(tracker.encode(Hello(NODE, 1, 1))) == Hello(NODE, 1, 1)
    assert tracker.decode_hello(msgspec.msgpack.encode({"node": NODE, "min": 1, "max": 3, "new": []})).max == 3


@pytest.mark.parametrize("message", [*FROM_AGENT, *FROM_TRACKER], ids=lambda message: type(message).__name__)
def test_cut_short_is_refused_and_appended_fields_are_ignored(message: tracker.FromAgent | tracker.FromTracker) -> None:
    decode: Callable[[bytes], object]
    decode = tracker.decode_from_agent if message in FROM_AGENT else tracker.decode_from_tracker
    raw = tracker.encode(message)
    for end in range(len(raw)):
        with pytest.raises(ProtocolError):
            decode(raw[:end])
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(raw), {"new": 1}])
    assert decode(longer) == message


def test_a_later_join_still_tells_its_versions() -> None:
    later = msgspec.msgpack.encode(["join", 2, 5, {"everything": "else"}])
    with pytest.raises(ProtocolError):
        tracker.decode_from_agent(later)
    assert tracker.decode_offer(later) == (2, 5)
    assert tracker.decode_offer(tracker.encode(JOIN)) == (1, 1)


@pytest.mark.parametrize(
    ("lowest", "highest", "version"), [(1, 1, 1), (0, 1, 1), (1, 9, 2), (2, 9, 2), (0, 0, None), (3, 9, None)]
)
def test_the_highest_common_version(lowest: int, highest: int, version: int | None) -> None:
    assert tracker.agreed_version(lowest, highest) == version


def test_everything_is_bounded() -> None:
    share, peer = Share(LAYER, 1, 2), Peer(NODE, "1.2.3.4:5", "")
    replace = msgspec.structs.replace
    for message in (
        Progress((share,) * (tracker.SWARMS_MAX + 1)),
        Seek((LAYER,) * (tracker.SWARMS_MAX + 1)),
        Dead((NODE,) * (tracker.DEAD_MAX + 1)),
        Progress((Share(LAYER + "\n", 1, 2),)),
        Progress((Share(LAYER, -1, 2),)),
        Progress((Share(LAYER, 1, 1 << 32),)),
        Dead((NODE + "\n",)),
        replace(JOIN, node=NODE.upper()),
        replace(JOIN, zone="z" * 256),
        replace(JOIN, port=1 << 16),
    ):
        with pytest.raises(ProtocolError):
            tracker.decode_from_agent(tracker.encode(message))
    for answer in (Peers((peer,) * (tracker.PEERS_MAX + 1)), Peers((Peer(NODE, "a" * 65, ""),))):
        with pytest.raises(ProtocolError):
            tracker.decode_from_tracker(tracker.encode(answer))
    assert len(tracker.encode(replace(JOIN, swarms=(share,) * tracker.SWARMS_MAX))) < tracker.MESSAGE_MAX
    with pytest.raises(ProtocolError, match="at most"):
        tracker.decode_from_agent(bytes(tracker.MESSAGE_MAX + 1))


def test_nesting_ends_in_an_error() -> None:
    for decode in DECODERS:
        with pytest.raises(ProtocolError):
            decode(b"\x94\xa4join\x01\x01" + b"\x91" * 200_000)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=200) | _ANYTHING.map(msgspec.msgpack.encode))
def test_garbage_raises_protocol_errors_only(data: bytes) -> None:
    for decode in DECODERS:
        with contextlib.suppress(ProtocolError):
            decode(data)


@given(st.sampled_from([tracker.encode(message) for message in [*FROM_AGENT, *FROM_TRACKER]]), st.data())
def test_flipped_bytes_raise_protocol_errors_only(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for decode in DECODERS:
        with contextlib.suppress(ProtocolError):
            decode(bytes(damaged))


@pytest.mark.parametrize("text", ["10.0.0.1:1", "[::1]:7651", "[2001:db8::1]:65535"])
def test_peer_addresses(text: str) -> None:
    assert str(tracker.peer_address(text)) == text


def test_an_ipv4_address_in_ipv6_dress_is_ipv4() -> None:
    for text, plain in {"[::ffff:127.0.0.1]:80": "127.0.0.1:80", "[::ffff:10.0.0.1]:80": "10.0.0.1:80"}.items():
        assert str(tracker.peer_address(text)) == plain
        assert Address.parse(text).is_local == Address.parse(plain).is_local


@pytest.mark.parametrize(
    "text",
    ["", ":1", "host:1", "localhost:1", "10.0.0.1", "10.0.0.1:0", "0.0.0.0:1", "[::]:1", "[fe80::1%eth0]:1",
     "224.0.0.1:1", "[::ffff:0.0.0.0]:1", "unix:///x", "https://10.0.0.1:1", "10.0.0.1:99999"],
)  # fmt: skip
def test_what_is_no_peer_address(text: str) -> None:
    with pytest.raises(UsageError):
        tracker.peer_address(text)
