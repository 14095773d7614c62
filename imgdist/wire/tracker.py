"""What agents and a supernode's tracker say to each other: msgpack messages over a WebSocket at `/v1/tracker`.

The tracker knows who takes part in which swarm; what each has its neighbours ask of each other. A message is one binary
WebSocket message, an array that begins with its name. Fields may be appended in later versions; a reader ignores those
it does not know. An agent joins first, within `JOIN_TIMEOUT_S`; the tracker answers each Join with Welcome and Peers,
or with Refused and the end; the first Welcome is followed by Revoked, if anything was. Welcome comes again when it is
known whether others reach the agent. Peers also comes after a Seek and, while an agent knows few, when more have come.

A swarm is named as on the wire of chunks: `sha256-<hex>-v<format version>`, or a pack id in hex; the tracker takes the
two for two swarms. Nothing here does I/O. Decoders raise ProtocolError and nothing else.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from imgdist.errors import ProtocolError, UsageError
from imgdist.wire.address import Address, plain_ip

VERSION_MIN, VERSION_MAX = 1, 2
"""Versions of this protocol that this release speaks; the highest that both sides speak is used. 1 has no Revoked."""
PATH = "/v1/tracker"
HELLO_PATH = "/v1/hello"
MESSAGE_MAX = 256 << 10
"""Most bytes of a message; a Join with `SWARMS_MAX` swarms has some 90 KB."""
SWARMS_MAX = 1024
"""Swarms that an agent takes part in: a node has some hundred layers, an image at most 128."""
PEERS_MAX = 24
NEAR_MAX = 8
"""Of `PEERS_MAX`, so many are of the same zone."""
DEAD_MAX = 64
REVOKED_MAX = 256
PROGRESS_FILLING_S, PROGRESS_IDLE_S = 5.0, 60.0
"""How often an agent tells its progress, less up to a fifth at random: while it lacks chunks, and otherwise (then it
may be empty: it says that the agent lives)."""
SILENT_S = 150.0
"""A connection that says nothing for so long is closed: two idle reports may be late."""
JOIN_TIMEOUT_S = 10.0

Count = Annotated[int, Meta(ge=0, lt=1 << 32)]
Node = Annotated[str, Meta(pattern="^[0-9a-f]{32}\\Z")]
"""A node id: 16 random bytes in hex, for the life of an agent's root."""
Swarm = Annotated[str, Meta(pattern="^([0-9a-f]{64}|sha256-[0-9a-f]{64}-v[0-9]{1,5})\\Z")]
Pack = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
REASON_MAX = 512
Text = Annotated[str, Meta(max_length=255)]
PeerAddress = Annotated[str, Meta(min_length=3, max_length=64)]


class Share(Struct, array_like=True, frozen=True, gc=False):
    """How many of a swarm's chunks an agent has; `count` is 0 while it does not know how many there are."""

    swarm: Swarm
    have: Count
    count: Count

    @property
    def is_complete(self) -> bool:
        """Whether nothing lacks."""
        return 0 < self.count <= self.have


Shares = Annotated[tuple[Share, ...], Meta(max_length=SWARMS_MAX)]


class Join(Struct, array_like=True, tag="join", frozen=True):
    """First message, and again when swarms come or go: `swarms` are all that this agent takes part in.

    `min`, `max`: versions it speaks. `name`: its host, for people. `address`: "IP:port" where other agents reach it;
    empty: the host that the tracker sees, with `port` (0: it does not listen).
    """

    min: Count
    max: Count
    node: Node
    name: Text
    address: Text
    port: Annotated[int, Meta(ge=0, lt=1 << 16)]
    zone: Text
    swarms: Shares


class Progress(Struct, array_like=True, tag="progress", frozen=True):
    """Counts that changed, of swarms joined."""

    shares: Shares


class Seek(Struct, array_like=True, tag="seek", frozen=True):
    """Asks for peers in these swarms (empty: in all that this agent lacks chunks of)."""

    swarms: Annotated[tuple[Swarm, ...], Meta(max_length=SWARMS_MAX)]


class Dead(Struct, array_like=True, tag="dead", frozen=True):
    """Peers that did not answer this agent. The tracker looks for itself."""

    nodes: Annotated[tuple[Node, ...], Meta(max_length=DEAD_MAX)]


class Leave(Struct, array_like=True, tag="leave", frozen=True):
    """The agent goes; it is forgotten at once."""


class Welcome(Struct, array_like=True, tag="welcome", frozen=True):
    """The agent is a member. `seen_host`: where it comes from ("" over a unix socket). `address`: what others are told
    ("" if there is none). `reachable`: whether that answered from the tracker with this node id; None: not tried yet.
    """

    version: Count
    seen_host: Text
    address: Text
    reachable: bool | None


class Peer(Struct, array_like=True, frozen=True, gc=False):
    """An agent to talk to, at "IP:port" ("[IPv6]:port")."""

    node: Node
    address: PeerAddress
    zone: Text


class Peers(Struct, array_like=True, tag="peers", frozen=True):
    """Some members of the swarms in question, never the agent itself. Those told before may come again."""

    peers: Annotated[tuple[Peer, ...], Meta(max_length=PEERS_MAX)]


class Revocation(Struct, array_like=True, frozen=True, gc=False):
    """A pack that is not what its layer converts to, and what was found."""

    pack: Pack
    reason: Annotated[str, Meta(max_length=REASON_MAX)]


class Revoked(Struct, array_like=True, tag="revoked", frozen=True):
    """Packs that no layer is any more; after the first Welcome, and when there are more. Those told before may come
    again."""

    packs: Annotated[tuple[Revocation, ...], Meta(max_length=REVOKED_MAX)]


class Refused(Struct, array_like=True, tag="refused", frozen=True):
    """The agent cannot be a member, and why. The connection ends."""

    reason: Annotated[str, Meta(max_length=1024)]


class Hello(Struct, frozen=True):
    """Body of `GET /v1/hello` at an agent's peer address, msgpack: which node answers there, and its mesh versions."""

    node: Node
    min: Count
    max: Count


class _Offer(Struct, array_like=True, tag="join", frozen=True):
    """What a Join of any version begins with."""

    min: Count
    max: Count


FromAgent = Join | Progress | Seek | Dead | Leave
FromTracker = Welcome | Peers | Refused | Revoked
DecodedT = TypeVar("DecodedT")

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_from_tracker: msgspec.msgpack.Decoder[FromTracker] = msgspec.msgpack.Decoder(FromTracker)
_offer = msgspec.msgpack.Decoder(_Offer)
_hello = msgspec.msgpack.Decoder(Hello)


def encode(message: FromAgent | FromTracker | Hello) -> bytes:
    """A message's bytes."""
    return _encoder.encode(message)


def decode_from_agent(data: bytes) -> FromAgent:
    """Read what an agent sent. Raises ProtocolError."""
    return _decode(_from_agent, data, "tracker message of an agent")


def decode_from_tracker(data: bytes) -> FromTracker:
    """Read what a tracker sent. Raises ProtocolError."""
    return _decode(_from_tracker, data, "tracker message")


def decode_offer(data: bytes) -> tuple[int, int]:
    """The versions that a Join offers, also one of a later version. Raises ProtocolError for what is no Join."""
    offer = _decode(_offer, data, "first tracker message of an agent")
    return offer.min, offer.max


def decode_hello(data: bytes) -> Hello:
    """Read the answer of `GET /v1/hello`. Raises ProtocolError."""
    return _decode(_hello, data, "hello")


def agreed_version(lowest: int, highest: int) -> int | None:
    """The version to speak with someone who speaks `lowest` to `highest`; None if there is none."""
    version = min(highest, VERSION_MAX)
    return version if version >= max(lowest, VERSION_MIN) else None


def peer_address(text: str) -> Address:
    """An address that agents may be told: a port of one IP. Raises UsageError.

    Names are refused: looking them up would make the tracker wait for somebody's name server.
    """
    address = Address.parse(text)
    try:
        ip = plain_ip(address.host)
    except ValueError:
        ip = None
    if ip is None or "%" in address.host or ip.is_unspecified or ip.is_multicast or not address.port:
        raise UsageError(f"peer address {text!r}: expected IP:port or [IPv6]:port of this node")
    return Address(str(ip), address.port)


def _decode(decoder: msgspec.msgpack.Decoder[DecodedT], data: bytes, what: str) -> DecodedT:
    if len(data) > MESSAGE_MAX:
        raise ProtocolError(f"{what}: expected at most {MESSAGE_MAX} bytes, got {len(data)}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{what}: {error}") from None
