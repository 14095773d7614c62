"""The cluster's key: how nodes know each other on a network that is not theirs alone.

Every node and supernode has the same file. From its key each makes tokens for what it asks, checked by whoever is asked
without asking anybody: a request of the control API, the mesh, the chunks of one pack. A token is
`1.<expiry, seconds since 1970 in hex>.<BLAKE3 of that and of what it is for, keyed, 16 bytes in hex>`; it is good for
minutes, so that one that is seen on the wire opens little, for that one thing. No supernode is needed for it: peers go
on serving each other without one.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from hmac import compare_digest

from blake3 import blake3

from imgdist.errors import ConfigError

FIELD = "Imgdist-Token"
"""The HTTP field that carries a token, in requests of every kind and in the answer that begins a mesh connection."""
MESH = "mesh"
"""What a token is for that opens a mesh connection; the other side's answers that token ("mesh " and it)."""
LIFE_S = 300.0
SKEW_S = 300.0
"""How far two nodes' clocks may be apart."""
KEY_MIN = 32
"""Characters of a key, chosen at random: 128 bits in hex are as many."""
_LOOK_S = 5.0
_REMEMBERED = 4096
"""Tokens of one's own and of others that are not computed anew: a node asks about some hundred packs at a time."""
_CONTEXT = "imgdist 2026-11 tokens of a cluster's nodes v1"
_TOKEN = re.compile(r"1\.([0-9a-f]{1,12})\.([0-9a-f]{32})")


class ClusterKey:
    """Makes and checks tokens. Thread-safe. The file has one key a line: the first makes tokens, all of them open, so
    that keys can be changed node by node; it is read again when it changes.

    Raises ConfigError for a file that cannot be read, that everybody may read, or with too short a key.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._version = _version(path)
        self._keys = _keys(path)
        self._mine: dict[str, tuple[str, float]] = {}
        self._accepted: dict[tuple[str, str], float] = {}

    def token(self, what: str) -> str:
        """A token for something, good for minutes."""
        now = self._clock()
        self._look(now)
        token, until = self._mine.get(what, ("", 0.0))
        if now < until:
            return token
        token = _token(self._keys[0], what, f"{int(now + LIFE_S):x}")
        if len(self._mine) >= _REMEMBERED:
            self._mine.clear()
        self._mine[what] = (token, now + LIFE_S / 2)
        return token

    def accepts(self, what: str, token: str) -> bool:
        """Whether a token was made for that with one of the keys, and is still good."""
        now = self._clock()
        self._look(now)
        if now < self._accepted.get((what, token), 0.0):
            return True
        match = _TOKEN.fullmatch(token)
        if match is None:
            return False
        until = int(match[1], 16) + SKEW_S
        if not now < until <= now + LIFE_S + 2 * SKEW_S or not any(
            compare_digest(_token(key, what, match[1]), token) for key in self._keys
        ):
            return False
        if len(self._accepted) >= _REMEMBERED:
            self._accepted.clear()
        self._accepted[what, token] = until
        return True

    def _look(self, now: float) -> None:
        """Take up a file that has changed; one that is wrong now changes nothing."""
        if 0 <= now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            version = _version(self._path)
            if version != self._version:
                self._keys, self._version = _keys(self._path), version
                self._mine, self._accepted = {}, {}
        except ConfigError:
            return


def open_key(path: str) -> ClusterKey | None:
    """The key of a file, None for no file. Raises ConfigError."""
    return ClusterKey(path) if path else None


def control(method: str, target: str) -> str:
    """What a token is for that opens a request of the control API: `target` is path and query as they are sent."""
    return f"{method} {target}"


def _token(key: bytes, what: str, expiry: str) -> str:
    return f"1.{expiry}.{blake3(f'{expiry} {what}'.encode(), key=key).digest(16).hex()}"


def _version(path: str) -> tuple[int, int, int]:
    try:
        seen = os.stat(path)
    except OSError as error:
        raise ConfigError(f"access.key_file {path}: cannot read the cluster's key: {error.strerror}") from None
    if seen.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"access.key_file {path}: everybody may read the cluster's key; expected chmod 600")
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def _keys(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            lines = [line.strip() for line in file.read(1 << 16).splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"access.key_file {path}: cannot read the cluster's key: {error.strerror}") from None
    if not lines or min(map(len, lines)) < KEY_MIN:
        raise ConfigError(
            f"access.key_file {path}: expected lines of at least {KEY_MIN} random characters, "
            "as `openssl rand -hex 32` prints them"
        )
    return [blake3(line, derive_key_context=_CONTEXT).digest() for line in lines]
