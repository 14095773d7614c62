"""Which tags clients have pulled through this node's mirror, and how fresh what they got was."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from imgdist.distribution.registry import Document
from imgdist.oci.reference import Reference

MAX = 1_000
"""Tags that are remembered, the longest unasked are forgotten; some 300 bytes each."""


class SeenTag(NamedTuple):
    """What a tag named when its registry was last asked, which was at `confirmed_at` (seconds since 1970)."""

    digest: str
    confirmed_at: float


class SeenTags:
    """By reference, in memory: an account for people, nothing is decided by it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._seen: dict[Reference, SeenTag] = {}

    def note(self, reference: Reference, document: Document) -> None:
        """A manifest is being served; by a tag, its Age (RFC 9111 section 5.1) says when that was confirmed."""
        if reference.tag is None or not document.digest:
            return
        age = next((value for name, value in document.headers if name == "Age"), "0")
        self._seen.pop(reference, None)
        self._seen[reference] = SeenTag(document.digest, self._clock() - (int(age) if age.isdecimal() else 0))
        if len(self._seen) > MAX:
            del self._seen[next(iter(self._seen))]

    def all(self) -> dict[Reference, SeenTag]:
        """Every tag that is remembered."""
        return dict(self._seen)
