"""Who this node is to others: an id for the life of its root, and the address at which other agents reach it."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from imgdist.errors import ConfigError, UsageError
from imgdist.wire.address import Address
from imgdist.wire.tracker import peer_address

_ID = re.compile(r"[0-9a-f]{32}\n?")


@dataclass(frozen=True, slots=True)
class Identity:
    """`address` is what others are told ("IP:port"), empty where only a tracker can see it; `port` is listened on."""

    node: str
    name: str
    zone: str
    address: str
    port: int


def identity(root: Path, zone: str, advertise: str, listener: socket.socket) -> Identity:
    """This node as others know it. OSError if ROOT/node-id can neither be read nor made."""
    host, port = listener.getsockname()[:2]
    listens_at = "" if Address(host, port).is_wildcard else str(Address(host, port))
    address = str(peer_address(advertise)) if advertise else listens_at
    return Identity(node_id(root), socket.gethostname()[:255], zone, address, port)


def node_id(root: Path) -> str:
    """The id that ROOT/node-id keeps, 16 random bytes in hex; a new one where there is none or it is damaged."""
    path = root / "node-id"
    try:
        kept = path.read_text("ascii")
        if _ID.fullmatch(kept):
            return kept.strip()
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    made = os.urandom(16).hex()
    fresh = path.with_name(".node-id.new")
    fresh.write_text(f"{made}\n", "ascii")
    fresh.replace(path)
    return made


def check_advertised(address: str) -> None:
    """Raise ConfigError unless `address` is empty or one that other agents may be told."""
    try:
        if address:
            peer_address(address)
    except UsageError as error:
        raise ConfigError(f"--peer-advertise {address}: {error}") from None
