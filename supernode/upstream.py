"""What a supernode reads of registries, and remembers of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imgdist.limits import DEFAULT_LIMITS, Limits
from supernode.catalog import Catalog
from supernode.chains import Chains
from supernode.database import Database
from supernode.registries import Registries
from supernode.registry.reachable import Answering
from supernode.resolve import Resolver
from supernode.tags import Tags


@dataclass(frozen=True, slots=True)
class Upstream:
    """Registries, whether they answer, and what they said: documents, tags, images and their layers' chain IDs."""

    registries: Registries
    answering: Answering
    catalog: Catalog
    chains: Chains
    tags: Tags
    resolver: Resolver


def remembered(
    registries: Registries,
    answering: Answering,
    database: Database,
    count: Callable[[str], None],
    *,
    limits: Limits = DEFAULT_LIMITS,
    delivered: Callable[[str, str], Awaitable[bool]] | None = None,
    clock: Callable[[], float] = time.time,
) -> Upstream:
    """Registries and what the database has of them. `count` and `clock` as of Tags, `limits` as of Catalog, `delivered`
    as of Resolver."""
    catalog, chains = Catalog(database, limits), Chains(database)
    tags = Tags(registries, catalog, count, clock)
    return Upstream(
        registries, answering, catalog, chains, tags, Resolver(registries, catalog, chains, tags, delivered)
    )
