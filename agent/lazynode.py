"""The parts of an agent that shows layers lazily, put together: the larger half of its composition root."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.blobs.source import Blobs
from agent.catalog import Catalog
from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.early import EarlyLayers
from agent.events import Events
from agent.figures import FailedReads
from agent.images import Images
from agent.known_images import KnownImages
from agent.launch import supernode_urls
from agent.layerindexes import LayerIndexes
from agent.mounter import Mounter
from agent.mounts import ImageMounts
from agent.openings import LayerOpenings
from agent.proving.idle import IdleProver
from agent.proving.prover import Prover
from agent.revocations import Revocations
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.packs import Sharing
from agent.space.figures import SpaceFigures
from agent.space.keeper import SpaceKeeper
from agent.starts import ImageStarts
from agent.strays import Strays
from agent.supernode_chunks import SupernodeChunks
from agent.supernode_client import SupernodeClient
from agent.supernodes import Supernodes
from agent.swarm.patience import Patience
from agent.swarm.peers import reach
from agent.swarm.station import Station
from agent.taking import NodeLayers
from agent.tracekeeper import TraceKeeper
from agent.tracing import TraceRecorder
from agent.transfer.gate import FillGate
from agent.transfer.pace import Pace
from agent.transfer.sources import ChunkSource
from agent.transfer.transfers import Transfers
from agent.withdrawal import Withdrawal
from fuse.link import ViewLink
from imgdist import holder_client
from imgdist.config import AgentConfig
from imgdist.oci.platform import Platform
from imgdist.space import Watermarks
from imgdist.wire.clusterkey import open_key

_REMEMBER_S = 0.1
"""For so long the packs of an image's layers are gathered before its record is written (a guess)."""


@dataclass(frozen=True, slots=True)
class LazyNode:
    """What the rest of the agent uses of it."""

    supernodes: Supernodes
    catalog: Catalog
    images: Images
    mounts: ImageMounts
    own_snapshots: Snapshotter
    sharing: Sharing
    layers: NodeLayers
    strays: Strays
    keeper: TraceKeeper
    space: SpaceKeeper
    prover: Prover
    idle_prover: IdleProver
    withdrawal: Withdrawal
    revocations: Revocations
    swarm: Station | None
    blobs: Blobs


async def lazy_node(
    config: AgentConfig, holder: holder_client.Holder, stack: AsyncExitStack, tasks: asyncio.TaskGroup
) -> LazyNode:
    """Make the parts and take up what earlier agents left; the view is told, and speaks, from then on."""
    root, run = Path(config.root), Path(config.run)
    events, sharing = Events(), Sharing()
    urls, key = supernode_urls(config), open_key(config.access.key_file)
    supernodes = Supernodes([SupernodeClient(url, key=key) for url in urls])
    stack.push_async_callback(supernodes.close)
    database = Database(root / "agent.db")
    stack.callback(database.close)
    listener = holder.fds.get("socket:peer")
    chunks = ChunkStore(root / "packs", database, keep_frames=listener is not None)
    stack.callback(chunks.close)
    recorder = TraceRecorder(config.trace.window_s)
    link = ViewLink(str(run / "view.sock"), events.missed, events.touched, FailedReads().failed, events.lapsed)
    stack.callback(link.close)
    seeds = [SupernodeChunks(url, key=key) for url in urls]

    def me() -> str:
        return seeds[0].node or ""

    connect = partial(reach, allow_plain=config.allow_plain, patience=Patience(), node=me, key=key)
    transfers = events.transfers = _transfers(
        config, link, seeds, chunks, connect, me, events, swarm=listener is not None
    )
    stack.callback(transfers.stop)
    events.keeper = TraceKeeper(recorder, supernodes, transfers.running_s)
    swarm = None
    if listener is not None:
        port = socket.socket(fileno=listener)
        swarm = Station(config, port, transfers, seeds, connect, tasks, key, revoked=events.revoked)
        stack.push_async_callback(swarm.close)

    mounter = Mounter(root / "l", run / "view", link)
    catalog = events.catalog = _catalog(config, chunks, mounter, transfers, swarm, events, tasks)
    stack.callback(catalog.close)
    revocations = Revocations(root / "revoked")
    images = events.images = _images(
        config, supernodes, catalog, chunks, transfers, swarm, recorder, tasks, revocations, events
    )
    stack.callback(images.known.flush)
    blobs = events.blobs = Blobs(supernodes, catalog, chunks, transfers, tasks, swarm)
    layers = NodeLayers(images, catalog, events.released, events.refused_pack)
    prover = Prover(supernodes, tasks, events.proved)
    withdrawal = events.withdrawal = _withdrawal(config, supernodes, catalog, images, sharing, revocations, tasks)
    events.space = _space(config, catalog, chunks, images, sharing, swarm)
    own_snapshots = _own_snapshots(config, layers, sharing, events)
    stack.callback(own_snapshots.close)

    await _take_up(database, mounter, catalog, link, swarm)
    strays = Strays(root, run / "view", lambda: [layer.store.name for layer in catalog.all()])
    return LazyNode(
        supernodes,
        catalog,
        images,
        ImageMounts(images, own_snapshots),
        own_snapshots,
        sharing,
        layers,
        strays,
        events.keeper,
        events.space,
        prover,
        _idle_prover(config, prover, catalog, revocations, swarm),
        withdrawal,
        revocations,
        swarm,
        blobs,
    )


async def _take_up(
    database: Database, mounter: Mounter, catalog: Catalog, link: ViewLink, swarm: Station | None
) -> None:
    """What earlier agents left, before anybody speaks to us."""
    await asyncio.to_thread(lambda: database.reserve(mounter.highest_node()))
    await catalog.recover()
    link.start()
    if swarm is not None:
        swarm.start()


def _own_snapshots(config: AgentConfig, layers: NodeLayers, sharing: Sharing, events: Events) -> Snapshotter:
    """Those of `imgdist mount`, which containerd's garbage collector must not see."""
    return Snapshotter(
        Path(config.root) / "mounts",
        layers,
        take_over_timeout_s=config.prepare_timeout_s,
        sharing=sharing,
        user="`imgdist mount`",
        make_room=events.make_room,
    )


def _withdrawal(
    config: AgentConfig,
    supernodes: Supernodes,
    catalog: Catalog,
    images: Images,
    sharing: Sharing,
    revocations: Revocations,
    tasks: asyncio.TaskGroup,
) -> Withdrawal:
    return Withdrawal(
        revocations,
        images,
        catalog,
        sharing,
        tasks,
        block=config.verify.action == "block",
        report=supernodes.prove,
    )


def _idle_prover(
    config: AgentConfig, prover: Prover, catalog: Catalog, revocations: Revocations, swarm: Station | None
) -> IdleProver:
    return IdleProver(
        prover,
        catalog.all,
        config.verify.mode,
        node=swarm.node if swarm is not None else "",
        others=lambda layer: swarm.sharing(layer.store) if swarm is not None else (),
        is_revoked=lambda pack_id: revocations.reason(pack_id) is not None,
        delay_s=config.verify.delay_s,
        fills=config.fill.mode == "full",
    )


def _transfers(
    config: AgentConfig,
    link: ViewLink,
    seeds: list[SupernodeChunks],
    chunks: ChunkStore,
    connect: Callable[[str], ChunkSource | None],
    me: Callable[[], str],
    events: Events,
    *,
    swarm: bool,
) -> Transfers:
    return Transfers(
        link,
        seeds,
        twins=chunks.twins,
        on_layer_complete=events.completed,
        on_pack_lost=events.lost,
        on_disk_refused=events.refused,
        read_deadline_s=config.read.wait_s,
        gate=FillGate(config.fill.quiet_s, config.fill.patience_s),
        pace=Pace(config.fill.delay_s, config.swarm.start_jitter_s, config.swarm.down_bytes_per_s),
        swarm=swarm,
        connect=connect,
        me=me,
    )


def _catalog(
    config: AgentConfig,
    chunks: ChunkStore,
    mounter: Mounter,
    transfers: Transfers,
    swarm: Station | None,
    events: Events,
    tasks: asyncio.TaskGroup,
) -> Catalog:
    return Catalog(
        chunks,
        mounter,
        transfers,
        tasks,
        fill=config.fill.mode == "full",
        switch_idle_s=config.switch.idle_s,
        show=swarm.show if swarm is not None else lambda store: None,
        hide=swarm.hide if swarm is not None else lambda store: None,
        make_room=events.make_room,
    )


def _images(
    config: AgentConfig,
    supernodes: Supernodes,
    catalog: Catalog,
    chunks: ChunkStore,
    transfers: Transfers,
    swarm: Station | None,
    recorder: TraceRecorder,
    tasks: asyncio.TaskGroup,
    revocations: Revocations,
    events: Events,
) -> Images:
    platform = str(Platform.of_this_machine())
    known = KnownImages(Path(config.root) / "images", partial(asyncio.get_running_loop().call_later, _REMEMBER_S))
    indexes = LayerIndexes(
        supernodes,
        platform=platform,
        agreement=config.require_agreement,
        revoked=revocations.reason,
        suspect=events.suspect,
    )
    # Only where links are idle meanwhile: a supernode of this machine's own has its chunks on the same disk.
    takes_early = config.fill.mode == "full" and bool(config.supernode)
    early = EarlyLayers(chunks, transfers, tasks, enabled=takes_early, swarm=swarm)
    openings = LayerOpenings(catalog, known, indexes, early, tasks, revoked=revocations.reason)
    starts = ImageStarts(
        supernodes,
        catalog,
        known,
        transfers,
        recorder,
        traces=config.trace.enabled,
        prefetch=config.fill.mode != "none",
    )
    return Images(supernodes, catalog, known, openings, starts, tasks, platform=platform)


def _space(
    config: AgentConfig,
    catalog: Catalog,
    chunks: ChunkStore,
    images: Images,
    sharing: Sharing,
    swarm: Station | None,
) -> SpaceKeeper:
    return SpaceKeeper(
        Path(config.root) / "packs",
        Watermarks(config.space.high, config.space.low, config.space.max_bytes),
        catalog,
        chunks,
        images.forget_without,
        sharing,
        SpaceFigures(),
        min_age_s=config.space.min_age_s,
        served_at=swarm.served_at if swarm is not None else lambda node: None,
    )
