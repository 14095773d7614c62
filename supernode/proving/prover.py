"""Has packs proved, on a supernode's own account and at an agent's word, and revokes those that are not their layers'.

Nothing is believed of an agent's report but that it is worth a look: a pack is revoked when it was found false here,
twice, by two processes. At a time one pack is looked at that somebody asks about, and one that is due: who asks does
not wait for what has only idle processors.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from imgdist.errors import ImgdistError, NotFoundError, TemporaryError
from imgdist.proving.process import When, prove_aside
from imgdist.proving.verdict import Verdict
from supernode.singleflight import SingleFlight
from supernode.store import LocalStore
from supernode.store.layout import INDEX, LOOKED_AT

log = logging.getLogger("imgdist.proving")

LOOK_S = 60.0
"""Between two looks for a pack that is due (a guess; each costs two stat(2) a pack)."""
REMEMBERED_S = 600.0
"""A verdict counts for so long for agents that ask: many may report one pack (a guess)."""
WAITING_MAX = 32
"""Packs that may wait to be looked at on agents' account."""
ASKED_MAX = 8
"""Of these, as many may be one node's: a node that asks about everything leaves room for the word of others."""


async def prove_pack(directory: Path, when: When) -> Verdict:
    """Prove the pack in `directory`, in a process of its own."""
    return await prove_aside("supernode.proving.worker", when, [str(directory)])


class Meter(Protocol):
    """Counts what came of it."""

    def proved(self, outcome: str) -> None:
        """A pack was looked at."""


class Prover:
    """On the event loop. `revoked(pack_id, reason)` is called once for each pack that is; `again(digests)` then, and
    for damaged packs, to have their layers converted anew. `busy()`: the supernode has more urgent work."""

    def __init__(
        self,
        store: LocalStore,
        meter: Meter,
        *,
        every_s: float,
        revoked: Callable[[str, str], Awaitable[None]],
        again: Callable[[Sequence[str]], None],
        busy: Callable[[], bool] = lambda: False,
        prove: Callable[[Path, When], Awaitable[Verdict]] = prove_pack,
    ) -> None:
        """`every_s`: each pack is proved so long after it was made or proved last; 0: never unasked. `prove` looks at
        the pack in a directory."""
        self._store = store
        self._meter = meter
        self._every_s = every_s
        self._revoked = revoked
        self._again = again
        self._busy = busy
        self._prove = prove
        self._one: dict[When, asyncio.Lock] = {"idle": asyncio.Lock(), "soon": asyncio.Lock()}
        self._looks: SingleFlight[Verdict] = SingleFlight()
        self._waiting: Counter[str] = Counter()
        self._verdicts: dict[str, tuple[float, Verdict]] = {}

    async def run(self) -> None:
        """Look at packs that are due, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._every_s or self._busy():
                continue
            due = await asyncio.to_thread(self._due)
            if due is not None:
                await self._look_unasked(due)

    async def _look_unasked(self, pack_id: str) -> None:
        try:
            await self.look(pack_id, when="idle")
        except ImgdistError:  # it went meanwhile, or others wait
            pass
        except OSError as error:  # a full disk takes no revocation: it is due again with the next look
            log.error("pack %s: what its proof came to cannot be acted on: %s", pack_id, error)

    async def look(self, pack_id: str, *, fresh: bool = True, when: When = "soon", by: str = "") -> Verdict:
        """The verdict on a pack, acted on. Who asks while it is looked at gets the same; unless `fresh`, so does who
        asks soon after. `by`: the node that asks, if one does. NotFoundError if the pack is not here; TemporaryError if
        too many wait."""
        if (reason := self._store.revoked.reason(pack_id)) is not None:
            return Verdict("false", reason)
        if not self._store.directory(pack_id).exists():
            raise NotFoundError(f"pack {pack_id} is not in this store")
        at, known = self._verdicts.get(pack_id, (float("-inf"), Verdict("unproven")))
        if not fresh and time.monotonic() - at < REMEMBERED_S:
            return known
        return await self._looks.do(pack_id, lambda: self._look(pack_id, when, by))

    async def _look(self, pack_id: str, when: When, by: str) -> Verdict:
        if self._waiting.total() >= WAITING_MAX:
            raise TemporaryError(f"{WAITING_MAX} packs wait to be looked at already; ask again later")
        if by and self._waiting[by] >= ASKED_MAX:
            raise TemporaryError(f"{ASKED_MAX} packs wait to be looked at for {by} already; ask again later")
        self._waiting[by] += 1
        try:
            async with self._one[when]:
                verdict = await self._looked(pack_id, when)
                await self._act(pack_id, verdict)
        finally:
            self._waiting[by] -= 1
            self._waiting += Counter()  # without those of whom nothing waits
        now = time.monotonic()
        self._verdicts = {pack: seen for pack, seen in self._verdicts.items() if now - seen[0] < REMEMBERED_S}
        self._verdicts[pack_id] = (now, verdict)
        self._meter.proved(verdict.outcome)
        return verdict

    async def _looked(self, pack_id: str, when: When) -> Verdict:
        """What is false is looked at twice: a machine that computes wrongly must not revoke what is right."""
        directory = self._store.directory(pack_id)
        verdict = await self._prove(directory, when)
        if verdict.outcome == "false":
            second = await self._prove(directory, "soon")
            if second.outcome != "false":
                log.error("pack %s: found %s, then %s: is this machine in order?", pack_id, verdict, second)
                return Verdict("unproven", f"two looks differ: {verdict}; {second}")
        return verdict

    async def _act(self, pack_id: str, verdict: Verdict) -> None:
        if verdict.outcome == "false":
            await self._revoke(pack_id, verdict.reason)
        elif verdict.outcome == "damaged":
            log.error("pack %s is damaged and is made again: %s", pack_id, verdict.reason)
            digests = await asyncio.to_thread(self._store.damaged, pack_id)
            if not digests:  # a blob's, or nobody's: it is read again when it is asked for
                await asyncio.to_thread(self._store.remove, pack_id)
            self._again(digests)
        elif verdict.outcome == "unproven":
            log.warning("pack %s: %s", pack_id, verdict)
        await asyncio.to_thread(self._note, pack_id)  # last: what could not be acted on is still due

    async def _revoke(self, pack_id: str, reason: str) -> None:
        digests = await asyncio.to_thread(self._store.revoke, pack_id, reason)
        log.error("pack %s is revoked, its layers %s are converted again: %s", pack_id, ", ".join(digests), reason)
        await self._revoked(pack_id, reason)
        self._again(digests)

    def _note(self, pack_id: str) -> None:
        with suppress(OSError):  # removed meanwhile
            (self._store.directory(pack_id) / LOOKED_AT).touch()

    def _due(self) -> str | None:
        """The pack that was not looked at for longest, if that is long enough."""
        ages = {pack: self._looked_at(pack) for pack in self._store.pack_ids() if not self._store.revoked.reason(pack)}
        oldest = min(ages, key=lambda pack: ages[pack], default=None)
        return oldest if oldest is not None and ages[oldest] < time.time() - self._every_s else None

    def _looked_at(self, pack_id: str) -> float:
        directory = self._store.directory(pack_id)
        for name in (LOOKED_AT, INDEX):
            with suppress(FileNotFoundError):
                return (directory / name).stat().st_mtime
        return time.time()  # removed meanwhile
