"""Registries' yeses, remembered for a moment, without the secrets that they were given for. Pure."""

from __future__ import annotations

import os
from collections import OrderedDict

import blake3

GRANTS_MAX = 100_000
"""Yeses kept, some 200 bytes each; the oldest go first, and cost one question each."""


PUBLIC_OUTAGE_S = 86_400.0


class Grants:
    """Who may read which repository, and until when that counts.

    A client is a keyed hash of what it shows: the key is random and lives as long as this process.
    """

    def __init__(self, remember_s: float, outage_s: float) -> None:
        """For so long a yes spares a question; for so long it counts while the registry does not answer."""
        self._remember_s = remember_s
        self._outage_s = outage_s
        self._key = os.urandom(32)
        self._given: OrderedDict[bytes, float] = OrderedDict()

    def give(self, name: str, authorization: str | None, now: float) -> None:
        """The registry said yes."""
        client = self._client(name, authorization)
        self._given[client] = now
        self._given.move_to_end(client)
        while len(self._given) > GRANTS_MAX:
            self._given.popitem(last=False)

    def take(self, name: str, authorization: str | None) -> None:
        """The registry said no."""
        self._given.pop(self._client(name, authorization), None)

    def is_fresh(self, name: str, authorization: str | None, now: float) -> bool:
        """Whether nobody has to be asked."""
        return self._age(name, authorization, now) < self._remember_s

    def stands(self, name: str, authorization: str | None, now: float) -> bool:
        """Whether it counts while the registry does not answer. What everybody could read hides nothing from anybody:
        for that a day, unless nothing is to stand."""
        outage_s = self._outage_s
        if authorization is None and outage_s:
            outage_s = max(outage_s, PUBLIC_OUTAGE_S)
        return self._age(name, authorization, now) < outage_s

    def _age(self, name: str, authorization: str | None, now: float) -> float:
        given = self._given.get(self._client(name, authorization))
        return float("inf") if given is None else now - given

    def _client(self, name: str, authorization: str | None) -> bytes:
        shown = b"" if authorization is None else b"\0" + authorization.encode("utf-8", "surrogateescape")
        return blake3.blake3(name.encode() + b"\0" + shown, key=self._key).digest(16)
