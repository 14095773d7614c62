"""How long what a registry said of a tag stands. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

from imgdist.oci.reference import Reference


@dataclass(frozen=True, slots=True)
class Freshness:
    """Seconds that an answer about a tag stands, by the first pattern of `rules` that fits "host/repository:tag", else
    `ttl_s`; and how old it may be at most when the registry does not answer."""

    ttl_s: float
    stale_if_error_s: float
    rules: tuple[tuple[str, float], ...] = ()

    def of(self, reference: Reference) -> float:
        """Seconds that an answer about this tag stands."""
        name = f"{reference.name}:{reference.tag}"
        return next((seconds for pattern, seconds in self.rules if fnmatchcase(name, pattern)), self.ttl_s)


def age_s(confirmed_at: float | None, now: float) -> float:
    """Seconds since a registry confirmed something; infinite if that is not known, or in the future (the clock was
    set back)."""
    return now - confirmed_at if confirmed_at is not None and confirmed_at <= now else math.inf
