"""The parts of a supernode, put together: the larger half of its composition root."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imgdist.config import SupernodeConfig
from imgdist.errors import ImgdistError
from imgdist.oci import transport
from imgdist.oci.patterns import Patterns
from imgdist.oci.reference import is_sha256
from imgdist.oci.settings import RegistrySettings
from imgdist.pack.kinds import Kind
from imgdist.space import Watermarks
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey
from supernode.access.access import Access
from supernode.access.grants import Grants
from supernode.access.provenance import Provenance
from supernode.api import Parts
from supernode.blobs.source import Blobs
from supernode.convert.conversion import Conversion
from supernode.convert.workers import Workers
from supernode.database import Database
from supernode.fetch import Fetcher, Origin
from supernode.freshness import Freshness
from supernode.keychain import keychain
from supernode.metrics import Metrics
from supernode.proving.prover import Prover
from supernode.registries import Registries
from supernode.registry.learning import Learning
from supernode.registry.pullthrough import PullThrough
from supernode.registry.reachable import Answering
from supernode.space.keeper import SpaceKeeper
from supernode.store import LocalStore
from supernode.traces import Traces
from supernode.tracker.session import Tracker
from supernode.upstream import Upstream, remembered


class Worker(Protocol):
    """A part with work of its own."""

    async def run(self) -> None:
        """Work until cancelled."""


@dataclass(frozen=True, slots=True)
class Supernode:
    """What is served: the control API speaks for `parts`, the pull API for `registry`; `workers` run beside."""

    parts: Parts
    registry: PullThrough
    workers: tuple[Worker, ...]


async def assembled(
    config: SupernodeConfig,
    root: Path,
    metrics: Metrics,
    key: ClusterKey | None,
    chunks: Callable[[], Address | None],
    held: AsyncExitStack,
) -> Supernode:
    """The parts of a supernode on `root`, until `held` is closed. `chunks`: where chunk bodies are served, None while
    they are not."""
    store = LocalStore(root)
    await asyncio.to_thread(store.recover)
    database = _database(root / "supernode.db")
    held.callback(database.close)
    provenance = Provenance(database)
    upstream = await _upstream(config, database, provenance, metrics, key, held)
    blobs = Blobs(store, upstream.registries)
    access = _access(config, upstream, provenance, store, blobs, metrics)
    fetcher = await _fetcher(config, upstream, store, blobs, metrics, held)
    tracker = Tracker(metrics, probe=config.tracker.probe, revoked=store.revoked.all)
    prover = Prover(
        store,
        metrics,
        every_s=config.proof.every_s,
        revoked=tracker.revoke,
        again=fetcher.again,
        busy=lambda: bool(fetcher.jobs),
    )
    space = _space(config, root, store, fetcher, blobs, tracker, metrics)
    learning = Learning(upstream.resolver, fetcher.learn)
    freshness = Freshness(config.tags.ttl_s, config.tags.stale_if_error_s, config.tags.ttls)
    parts = Parts(
        root=root,
        resolver=upstream.resolver,
        fetcher=fetcher,
        blobs=blobs,
        store=store,
        chains=upstream.chains,
        traces=Traces(root / "traces"),
        metrics=metrics,
        tracker=tracker,
        space=space,
        prover=prover,
        access=access,
        key=key,
        chunks=chunks,
    )
    registry = PullThrough(upstream, freshness, access, blobs, learning)
    return Supernode(parts, registry, (blobs, access, fetcher, tracker, space, prover, learning))


async def _upstream(
    config: SupernodeConfig,
    database: Database,
    provenance: Provenance,
    metrics: Metrics,
    key: ClusterKey | None,
    held: AsyncExitStack,
) -> Upstream:
    """Where there is a key, tenants reach this supernode: a document counts for the repositories that it came from."""
    http = await held.enter_async_context(transport.session())
    answering = Answering(metrics)
    settings = RegistrySettings(config.registry, config.plain_http)
    registries = Registries(http, answering, settings, keychain(config.registry, http), witness=provenance)
    return remembered(
        registries,
        answering,
        database,
        metrics.tag_asked,
        limits=config.limits.limits(),
        delivered=provenance.has if key else None,
    )


def _access(
    config: SupernodeConfig,
    upstream: Upstream,
    provenance: Provenance,
    store: LocalStore,
    blobs: Blobs,
    metrics: Metrics,
) -> Access:
    async def holds(digest: str) -> bool:
        is_kept = blobs.is_here(digest) or (is_sha256(digest) and store.find(digest) is not None)
        return is_kept or await upstream.catalog.document(digest) is not None

    return Access(
        upstream.registries,
        Grants(config.access.remember_s, config.access.outage_s),
        provenance,
        Patterns(config.access.shared, "access.shared"),
        holds,
        metrics.authorised,
    )


async def _fetcher(
    config: SupernodeConfig,
    upstream: Upstream,
    store: LocalStore,
    blobs: Blobs,
    metrics: Metrics,
    held: AsyncExitStack,
) -> Fetcher:
    workers = await held.enter_async_context(Workers())
    limits = config.limits.limits()

    def convert(origin: Origin) -> Conversion:
        return Conversion(
            store,
            workers,
            origin.layer.digest,
            diff_id=origin.diff_id,
            threads=config.convert.threads,
            level=config.convert.level,
            limits=limits,
        )

    def read(origin: Origin) -> AsyncGenerator[bytes, None]:
        if config.convert.keep_blobs or blobs.is_here(origin.layer.digest):
            return blobs.read(origin.blob, origin.layer.size)
        return upstream.registries.client(origin.host).blob(origin.repository, origin.layer)

    fetcher = Fetcher(store, upstream.catalog, read, convert, config.convert.layers, metrics.converted)
    await fetcher.load()
    return fetcher


def _space(
    config: SupernodeConfig,
    root: Path,
    store: LocalStore,
    fetcher: Fetcher,
    blobs: Blobs,
    tracker: Tracker,
    metrics: Metrics,
) -> SpaceKeeper:
    return SpaceKeeper(
        store,
        root,
        Watermarks(config.space.high, config.space.low, config.space.max_bytes),
        metrics,
        retention_s=config.space.retention_s,
        wanted=tracker.wanted,
        under_way=lambda: [
            *((digest, Kind.LAYER) for digest in fetcher.jobs),
            *((digest, Kind.RAW) for digest in blobs.under_way),
        ],
    )


def _database(path: Path) -> Database:
    try:
        return Database(path)
    except sqlite3.Error as error:
        raise ImgdistError(f"{path}: cannot open the database: {error}; if it is damaged, remove it") from None
