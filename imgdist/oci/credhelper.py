"""Docker credential helpers: `docker-credential-NAME get` reads a host on stdin and prints JSON.

ECR, GAR, ACR and others have one. What it says is kept in memory until shortly before it expires, as far as it says
when (a JSON web token, an ECR password), else for ten minutes; what a registry refuses is asked for anew.
"""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec

from imgdist.errors import ConfigError, TemporaryError
from imgdist.oci.credentials import Credentials, expiry

KEEP_S = 600.0
"""How long an answer without an end is kept: the shortest-lived ones that are known (GAR's) last an hour."""
EARLY_S = 60.0
"""So long before its end the next one is asked for: a pull that begins with it must not outlive it at once."""
KEPT_MAX = 1000
"""Registries whose answers are kept: whoever may use a mirror can name any host."""
TIMEOUT_S = 10.0
_ANSWER_MAX = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN_USER = "<token>"
"""The user name of a helper that hands out identity tokens (docker-credential-helpers)."""
_NOT_FOUND = b"credentials not found"


class _Answer(msgspec.Struct):
    username: str = msgspec.field(name="Username", default="")
    secret: str = msgspec.field(name="Secret", default="")


@dataclass(frozen=True, slots=True)
class _Kept:
    credentials: Credentials | None
    until: float


class CredentialHelper:
    """Runs helpers, one at a time for each registry: of many requests that need credentials the first asks."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def get(self, name: str, host: str) -> Credentials | None:
        """What the helper has for a registry; None: nothing. Raises ConfigError if there is no such helper,
        TemporaryError if it fails."""
        key = (name, host)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            kept = self._kept.get(key)
            if kept is None or self._clock() >= kept.until:
                found = await _run(name, host)
                kept = self._kept[key] = _Kept(found, self._until(found))
                if len(self._kept) > KEPT_MAX:
                    self._kept.pop(next(iter(self._kept)))
            return kept.credentials

    def forget(self, name: str, host: str) -> None:
        """Ask anew next time."""
        self._kept.pop((name, host), None)

    def _until(self, found: Credentials | None) -> float:
        now = self._clock()
        ends = expiry(found.password or found.identity_token) if found else math.inf
        return now + KEEP_S if math.isinf(ends) else max(now, ends - EARLY_S)


async def _run(name: str, host: str) -> Credentials | None:
    program = shutil.which(f"docker-credential-{name}") if _NAME.fullmatch(name) else None
    if program is None:
        raise ConfigError(f"credentials for {host}: expected the program docker-credential-{name} in PATH, found none")
    process = await asyncio.create_subprocess_exec(program, "get", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    server = "https://index.docker.io/v1/" if host == "docker.io" else host
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate(server.encode())
    except TimeoutError:
        raise TemporaryError(
            f"credentials for {host}: docker-credential-{name} took more than {TIMEOUT_S:.0f} s"
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        if _NOT_FOUND in said:
            return None
        # What it printed may have secrets in it.
        raise TemporaryError(f"credentials for {host}: docker-credential-{name} ended with code {process.returncode}")
    return _credentials(said, name, host)


def _credentials(said: bytes, name: str, host: str) -> Credentials | None:
    try:
        answer = msgspec.json.decode(said[:_ANSWER_MAX], type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TemporaryError(f"credentials for {host}: docker-credential-{name} printed no JSON credentials") from None
    if not answer.secret:
        return None
    if answer.username == _TOKEN_USER:
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret)
