"""Whether a registry answers: from what it answered lately, else by asking it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from imgdist.errors import ImgdistError, TemporaryError
from imgdist.oci.transport import Meter
from supernode.registries import CLIENTS_MAX, Registries

LATELY_S = 5.0
"""How long an answer vouches for the next (a guess: a pull asks for its first blob that soon)."""
PATIENCE_S = 3.0
"""How long a registry may take to give a sign of life."""


class Answering:
    """A Meter in front of another, which notes when each registry answered last, with whatever but a failure of its
    own."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock
        self._answered: dict[str, float] = {}

    def request(self, registry: str, status: str) -> None:
        """As Meter.request."""
        if status.isdigit() and int(status) < 500 and status != "429":
            self._answered.pop(registry, None)
            self._answered[registry] = self._clock()
            if len(self._answered) > CLIENTS_MAX:
                del self._answered[next(iter(self._answered))]
        self._meter.request(registry, status)

    def received(self, registry: str, size_bytes: int) -> None:
        """As Meter.received."""
        self._meter.received(registry, size_bytes)

    def retried(self, registry: str, reason: str) -> None:
        """As Meter.retried."""
        self._meter.retried(registry, reason)

    def lately(self, registry: str) -> bool:
        """Whether the registry answered a moment ago."""
        return self._clock() - self._answered.get(registry, float("-inf")) < LATELY_S

    async def answers(self, registries: Registries, registry: str) -> bool:
        """Whether the registry answers, asked only if it did not do so lately."""
        if self.lately(registry):
            return True
        try:
            async with asyncio.timeout(PATIENCE_S):
                await registries.client(registry).ping()
        except (TemporaryError, TimeoutError):
            return False
        except ImgdistError:
            return True  # it said something; what that means is seen when a blob is asked for
        return True
