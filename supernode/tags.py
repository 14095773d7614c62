"""What tags name: asked of their registry when the last answer is too old, remembered for when it does not answer."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from imgdist.errors import TemporaryError
from imgdist.oci.reference import Reference
from supernode.catalog import Catalog
from supernode.freshness import age_s
from supernode.registries import Registries
from supernode.singleflight import SingleFlight

log = logging.getLogger("imgdist.resolve")

PATIENCE_S = 5.0
"""How long a registry may take to confirm a tag that is known: after that it counts as not answering. Clients wait."""
REST_S = 5.0
"""How long a registry that did not answer is not asked about tags that are known (a guess)."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """The digest that a tag names, and how long ago its registry said so. `is_stale`: it should have been asked again,
    and did not answer."""

    digest: str
    age_s: float = 0.0
    is_stale: bool = False


class Tags:
    """The tags of all registries. `count` is told how each question was answered: "fresh" (not asked), "confirmed",
    "moved" (or seen for the first time), "stale"."""

    def __init__(
        self,
        registries: Registries,
        catalog: Catalog,
        count: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registries = registries
        self._catalog = catalog
        self._count = count
        self._clock = clock
        self._flights: SingleFlight[str] = SingleFlight()
        self._resting: dict[str, float] = {}

    async def digest(self, reference: Reference, ttl_s: float = 0.0, stale_s: float = math.inf) -> Tagged:
        """What the tag of `reference` names, confirmed within `ttl_s`; within `stale_s` while its registry does not
        answer. Raises what the registry client raises."""
        tag = reference.tag or "latest"
        known = await self._catalog.tag(reference.name, tag)
        age = age_s(known.confirmed_at if known else None, self._clock())
        if known is not None and age < ttl_s:
            self._count("fresh")
            return Tagged(known.digest, age)
        try:
            digest = await self._flights.do((reference.name, tag), lambda: self._ask(reference, tag))
        except TemporaryError as error:
            if known is None or (age > stale_s):
                raise
            log.warning("%s: the registry does not answer, going on with %s: %s", reference, known.digest, error)
            self._count("stale")
            return Tagged(known.digest, age, is_stale=True)
        return Tagged(digest)

    async def _ask(self, reference: Reference, tag: str) -> str:
        known = await self._catalog.tag(reference.name, tag)
        if known is None:
            return await self._read(reference, tag)
        if self._clock() < self._resting.get(reference.host, 0.0):
            raise TemporaryError(f"{reference.host} did not answer a moment ago")
        try:
            # In here, so that all who share the flight share the outcome: one that is cancelled would be flown anew.
            async with asyncio.timeout(PATIENCE_S):
                return await self._confirm(reference, tag, known.digest)
        except (TemporaryError, TimeoutError) as error:
            self._resting[reference.host] = self._clock() + REST_S
            if isinstance(error, TemporaryError):
                raise
            raise TemporaryError(f"{reference.host} did not answer within {PATIENCE_S:g} s") from None

    async def _confirm(self, reference: Reference, tag: str, known: str) -> str:
        client = self._registries.client(reference.host)
        if await client.digest_of_tag(reference.repository, tag) != known:
            return await self._read(reference, tag)
        await self._catalog.keep_tag(reference.name, tag, known, self._clock())
        self._count("confirmed")
        return known

    async def _read(self, reference: Reference, tag: str) -> str:
        by_tag = Reference(reference.host, reference.repository, tag=tag)
        digest, media_type, raw = await self._registries.client(reference.host).resolve(by_tag)
        await self._catalog.keep_document(digest, media_type, raw)
        await self._catalog.keep_tag(reference.name, tag, digest, self._clock())
        self._count("moved")
        return digest
