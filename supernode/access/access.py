"""Whether a client may have something, told by its registry (an `imgdist.oci.access.Authoriser`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from imgdist.errors import ImgdistError, NotFoundError, TemporaryError
from imgdist.oci.access import Verdict
from imgdist.oci.patterns import Patterns
from imgdist.oci.permission import Shown
from imgdist.oci.reference import Reference, is_digest
from supernode.access.grants import Grants
from supernode.access.proofs import Proofs
from supernode.access.provenance import Provenance
from supernode.registries import Registries
from supernode.singleflight import SingleFlight

log = logging.getLogger("imgdist.access")

PATIENCE_S = 5.0
"""How long a registry may take to answer: clients wait that long for a first byte, and go elsewhere."""
PRIVATE_S = 10.0
"""How long a repository that is not open to everybody is taken to stay so."""
SWEEP_S = 5.0
CLAIMS_MAX = 100_000


class Access:
    """Asks for each client and repository, remembers yeses, and hands out what is here only where it is proven to be.

    `holds(digest)`: whether a manifest or blob is here, or on its way. `count(answer)` is told how each question was
    answered: "remembered", "asked", "outage" or "refused". Run `run` beside it.
    """

    def __init__(
        self,
        registries: Registries,
        grants: Grants,
        provenance: Provenance,
        shared: Patterns,
        holds: Callable[[str], Awaitable[bool]],
        count: Callable[[str], None] = lambda answer: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shared`: repositories that every client may read by our own credentials."""
        self._registries = registries
        self._grants = grants
        self._provenance = provenance
        self._shared = shared
        self._holds = holds
        self._count = count
        self._clock = clock
        self._proofs = Proofs(registries)
        self._questions: SingleFlight[Shown] = SingleFlight()
        self._private: dict[str, tuple[float, Shown]] = {}
        self._claims: dict[tuple[str, str], None] = {}  # a registry said that a repository has this

    async def run(self) -> None:
        """Prove what is to be proven and forget secrets whose time is over, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._proofs.run())
            tasks.create_task(self._provenance.run())
            while True:
                await asyncio.sleep(SWEEP_S)
                self._registries.seen.sweep()

    async def allowed(self, name: str, reference: str, authorization: str | None) -> Verdict:
        """As Authoriser.allowed."""
        if (refusal := self._registries.settings.refusal(name)) is not None:
            return self._counted(Verdict(403, reason=str(refusal)))
        try:
            verdict = await self._may_read(name, reference, authorization)
            if verdict.is_allowed:
                verdict = await self._is_theirs(name, reference, authorization)
        except TemporaryError as error:
            verdict = Verdict(503, reason=str(error), retry_after_s=error.retry_after_s)
        except ImgdistError as error:
            verdict = Verdict(404 if isinstance(error, NotFoundError) else 403, reason=str(error))
        return self._counted(verdict)

    async def shown(self, name: str, digest: str) -> None:
        """As Authoriser.shown."""
        await self._proofs.settled(name.partition("/")[0], digest)

    async def is_public(self, name: str) -> bool:
        """Whether everybody may read a repository, as far as is remembered or its registry says now."""
        try:
            return (await self._may_read(name, "tags/list", None)).is_allowed
        except ImgdistError:
            return False

    async def is_proven(self, name: str, digest: str, size: int) -> bool:
        """Whether a blob that is here may be taken to be this repository's. If not, it will be once its registry has
        delivered `size` bytes, which begins now."""
        if await self._provenance.has(name, digest):
            return True
        host, _, repository = name.partition("/")
        if not await self._is_from(host, digest):
            self._proofs.begin(Reference(host, repository, digest=digest), size)
            return False
        # It has delivered it, for another repository perhaps; or nobody has: then it will be read from there.
        return not await self._provenance.hosts(digest) or await self._claimed(name, f"blobs/{digest}", None)

    async def claims(self, name: str, digest: str) -> bool:
        """Whether its registry says that a repository has a blob. Raises what the registry's client raises."""
        return await self._claimed(name, f"blobs/{digest}", None)

    # May this client read this repository?

    async def _may_read(self, name: str, reference: str, authorization: str | None) -> Verdict:
        now = self._clock()
        if self._shared.match(name):
            return Verdict()
        for shown in {None, authorization}:
            if self._grants.is_fresh(name, shown, now):
                self._count("remembered")
                return Verdict()
        try:
            said = await self._public(name, reference, now)
            if said.status != 200 and authorization is not None:
                said = await self._ask(name, reference, authorization)
        except TemporaryError:
            if any(self._grants.stands(name, shown, now) for shown in {None, authorization}):
                self._count("outage")
                return Verdict()
            raise
        return _verdict(name, reference, said)

    async def _public(self, name: str, reference: str, now: float) -> Shown:
        """What is said to somebody without credentials; a no is remembered for a moment, too."""
        until, said = self._private.get(name, (0.0, Shown(404)))
        if now < until and said.status != 404:
            return said
        said = await self._ask(name, reference, None)
        self._private.pop(name, None)
        if said.status in (401, 403):
            self._private[name] = (now + PRIVATE_S, said)
            if len(self._private) > CLAIMS_MAX:
                del self._private[next(iter(self._private))]
        return said

    async def _ask(self, name: str, reference: str, authorization: str | None) -> Shown:
        said = await self._questions.do(
            (name, reference, authorization), lambda: self._question(name, reference, authorization)
        )
        if said.status == 200:
            self._grants.give(name, authorization, self._clock())
            if authorization is not None:
                self._registries.seen.note(name, authorization)
            if not reference.startswith(("tags/", "referrers/")):
                self._claim(name, reference)
        elif said.status in (401, 403):
            self._grants.take(name, authorization)
        return said

    async def _question(self, name: str, reference: str, authorization: str | None) -> Shown:
        host, _, repository = name.partition("/")
        self._count("asked")
        # The list of tags: referrers are not served by all, and their 404 would say nothing of who may read.
        path = "tags/list" if reference.startswith("referrers/") else reference
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._registries.client(host).shown(repository, path, authorization)
        except TimeoutError:
            raise TemporaryError(f"{name}: no word within {PATIENCE_S:.0f} s from its registry who may read") from None

    # Is what is here under that digest this repository's?

    async def _is_theirs(self, name: str, reference: str, authorization: str | None) -> Verdict:
        kind, _, digest = reference.rpartition("/")
        if not is_digest(digest) or kind not in ("manifests", "blobs"):
            return Verdict()
        if await self._provenance.has(name, digest):
            return Verdict()
        if not await self._claimed(name, reference, authorization):
            return Verdict(404, reason=f"{name}: {reference} is not there")
        host, _, repository = name.partition("/")
        if await self._is_from(host, digest):
            return Verdict()
        where = Reference(host, repository, digest=digest)
        if kind == "manifests":
            await self._registries.client(host).resolve(where)
            return Verdict()
        self._proofs.begin(where, None)
        words = f"{name}: {reference} came from another registry; this one is asked for it first"
        return Verdict(404, reason=words, is_elsewhere=True)

    async def _is_from(self, host: str, digest: str) -> bool:
        """Whether what is here under a digest, or on its way, came from that registry; or nothing is here."""
        delivered = await self._provenance.hosts(digest)
        if host in delivered:
            return True
        readers = self._provenance.readers(digest) - self._proofs.hosts(digest)
        if delivered or readers - {host}:
            return False
        return bool(readers) or not await self._holds(digest)

    async def _claimed(self, name: str, reference: str, authorization: str | None) -> bool:
        if (name, reference) in self._claims:
            return True
        shown = authorization or self._registries.seen.find(name)
        host, _, repository = name.partition("/")
        if self._shared.match(name) or shown is None:
            return await self._registries.client(host).has(repository, reference)
        return (await self._ask(name, reference, shown)).status == 200

    def _claim(self, name: str, reference: str) -> None:
        self._claims[name, reference] = None
        while len(self._claims) > CLAIMS_MAX:
            del self._claims[next(iter(self._claims))]

    def _counted(self, verdict: Verdict) -> Verdict:
        if not verdict.is_allowed:
            self._count("refused")
            log.debug("%d: %s", verdict.status, verdict.reason)
        return verdict


def _verdict(name: str, reference: str, said: Shown) -> Verdict:
    if said.status == 200:
        return Verdict()
    words = f"{name}: {reference}: the registry answered {said.status} to these credentials"
    if said.status == 401:
        return Verdict(401, said.challenges, words)
    return Verdict(said.status if said.status in (403, 404) else 403, reason=words)
