"""The agent's composition root; agent/main.py is where the process begins."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from grpclib.server import Server

from agent import api
from agent.catalog import Catalog
from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.draining import Draining
from agent.early import EarlyLayers
from agent.figures import FailedReads
from agent.images import Images
from agent.known_images import KnownImages
from agent.launch import supernode_urls
from agent.layerstore import LayerStore
from agent.leaving import leave
from agent.mounter import Mounter
from agent.mounts import ImageMounts
from agent.snapshotter import grpc
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.packs import Sharing
from agent.snapshotter.server import SnapshotsServer
from agent.space.figures import SpaceFigures
from agent.space.keeper import SpaceKeeper
from agent.space.room import no_room
from agent.strays import Strays
from agent.supernode_client import SupernodeClient
from agent.supernodes import SupernodeChunks, Supernodes
from agent.swarm.patience import Patience
from agent.swarm.peers import reach
from agent.swarm.station import Station
from agent.taking import NodeLayers
from agent.tracekeeper import TraceKeeper
from agent.tracing import TraceRecorder
from agent.transfer.gate import FillGate
from agent.transfer.pace import Pace
from agent.transfer.transfers import Transfers
from agent.unused import Unused
from fuse.link import ViewLink
from imgdist import daemon, holder_client, rootformat
from imgdist.config import AgentConfig
from imgdist.errors import ImgdistError
from imgdist.oci.platform import Platform
from imgdist.space import Watermarks

log = logging.getLogger("imgdist.agent")

_SWITCH_INTERVAL_S = 0.0005  # a miss crosses several threads; the default 5 ms is what each might wait for the GIL


_OWN_ATTEMPTS, _OWN_RETRY_S = 30, 0.1
_SHUTDOWN_S = 1.0  # for answers of the API under way at a stop; what they wait for has been cancelled by then

_CLOSING_S = 3.0


class _Stopped(Exception):
    """SIGTERM, or the holder is gone: ends the task group in order."""


@dataclass(frozen=True, slots=True)
class _LazyNode:
    catalog: Catalog
    images: Images
    mounts: ImageMounts
    own_snapshots: Snapshotter
    sharing: Sharing
    layers: NodeLayers
    strays: Strays
    keeper: TraceKeeper
    space: SpaceKeeper
    swarm: Station | None


def main() -> int:
    """Serve until SIGTERM, or until the holder is gone."""
    config = msgspec.json.decode(sys.argv[1], type=AgentConfig)
    daemon.configure_logging(config.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    code = 0
    holder = holder_client.connect()
    try:
        rootformat.check(Path(config.root))
        if holder.standby:
            api.Calls()  # loads it now (agent/late.py): that is not to cost time when it is our turn
        if not holder.stand_by():
            return 0
        asyncio.run(serve(config, holder, lazy=sys.argv[2] == "lazy"))
    except* (ImgdistError, OSError, sqlite3.Error) as group:
        log.error("the agent cannot go on: %s", _first(group))
        code = 1
    return code


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def serve(config: AgentConfig, holder: holder_client.Holder, *, lazy: bool) -> None:
    """Everything between the holder's word and the last log line."""
    loop, stop, retire = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def heard() -> None:
        word = holder.heard()
        if word is not None and "retire" in word:
            retire.set()
        else:
            loop.remove_reader(holder.fileno())
        stop.set()

    loop.add_reader(holder.fileno(), heard)
    async with AsyncExitStack() as stack:
        await _own(Path(config.root), stack)
        rootformat.mark(Path(config.root))
        try:
            async with asyncio.TaskGroup() as tasks:
                node = await _lazy_node(config, holder, stack, tasks) if lazy else None
                if not stop.is_set():
                    snapshotter, server, calls = await _serve_sockets(config, holder, node, stack, tasks)
                    holder.ready()
                    recovering = tasks.create_task(_recover(node, snapshotter))
                    await stop.wait()
                    if retire.is_set():
                        await _leave(server, calls, node)
                    recovering.cancel()
                    if node is not None:
                        await _finish(node, config.stop_timeout_s)
                raise _Stopped
        except* _Stopped:
            log.info("stopped; mounts in use stay")


async def _own(root: Path, stack: AsyncExitStack) -> None:
    """Two agents would destroy each other's work below `root`: ImgdistError if another one has it."""
    lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, lock)
    # One that was killed along with its holder may take a moment to end.
    for _ in range(_OWN_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(_OWN_RETRY_S)
    raise ImgdistError(f"{root}: another agent uses it; stop that one or choose another --root")


async def _lazy_node(
    config: AgentConfig, holder: holder_client.Holder, stack: AsyncExitStack, tasks: asyncio.TaskGroup
) -> _LazyNode:
    """Build the parts of an agent that shows layers lazily, and take up what earlier ones left."""
    root, run, loop = Path(config.root), Path(config.run), asyncio.get_running_loop()
    urls = supernode_urls(config)
    clients = [SupernodeClient(url) for url in urls]
    supernodes = Supernodes(clients)
    stack.push_async_callback(supernodes.close)
    database = Database(root / "agent.db")
    stack.callback(database.close)
    listener = holder.fds.get("socket:peer")
    chunks = ChunkStore(root / "packs", database, keep_frames=listener is not None)
    stack.callback(chunks.close)
    recorder = TraceRecorder(config.trace.window_s)
    keeper = TraceKeeper(recorder, supernodes)

    def missed(node: int, start: int, length: int) -> None:
        transfers.miss(node, start, length)

    def touched(touches: list[tuple[int, int, int]]) -> None:
        transfers.touched(touches)  # here, in the link's thread: fill makes way at once
        loop.call_soon_threadsafe(keeper.touched, touches)

    def completed(store: LayerStore) -> None:
        loop.call_soon_threadsafe(catalog.completed, store.pack_id.hex())

    def lapsed(node: int, start: int, length: int, waited_s: float) -> None:
        transfers.lapsed(node, start, length, waited_s)

    def lost(pack_id: str) -> None:
        loop.call_soon_threadsafe(lambda: images.lost(pack_id))

    def refused(error: OSError, name: str) -> None:
        loop.call_soon_threadsafe(lambda: space.refused(error, name))

    async def make_room(size_bytes: int) -> bool:
        return await space.make_room(size_bytes)

    link = ViewLink(str(run / "view.sock"), missed, touched, FailedReads().failed, lapsed)
    stack.callback(link.close)
    seeds = [SupernodeChunks(url) for url in urls]
    connect = partial(reach, allow_plain=config.allow_plain, patience=Patience(), node=lambda: seeds[0].node or "")
    transfers = Transfers(
        link,
        seeds,
        twins=chunks.twins,
        on_layer_complete=completed,
        on_pack_lost=lost,
        on_disk_refused=refused,
        read_deadline_s=config.read.wait_s,
        gate=FillGate(config.fill.quiet_s, config.fill.patience_s),
        pace=Pace(config.fill.delay_s, config.swarm.start_jitter_s, config.swarm.down_bytes_per_s),
        swarm=listener is not None,
        connect=connect,
    )
    stack.callback(transfers.stop)
    swarm = None
    if listener is not None:
        swarm = Station(config, socket.socket(fileno=listener), transfers, seeds, connect, tasks)
        stack.push_async_callback(swarm.close)
    mounter = Mounter(root / "l", run / "view", link)
    catalog = Catalog(
        chunks,
        mounter,
        transfers,
        tasks,
        fill=config.fill.mode == "full",
        switch_idle_s=config.switch.idle_s,
        show=swarm.show if swarm is not None else lambda store: None,
        hide=swarm.hide if swarm is not None else lambda store: None,
        make_room=make_room,
    )
    # Only where links are idle meanwhile: a supernode of this machine's own has its chunks on the same disk.
    takes_early = config.fill.mode == "full" and bool(config.supernode)
    early = EarlyLayers(chunks, transfers, tasks, enabled=takes_early, swarm=swarm)
    known = KnownImages(root / "images")
    images = Images(
        supernodes,
        catalog,
        early,
        known,
        transfers,
        recorder,
        tasks,
        platform=str(Platform.of_this_machine()),
        traces=config.trace.enabled,
        prefetch=config.fill.mode != "none",
    )
    layers = NodeLayers(images, catalog, lambda: space.wake())
    sharing = Sharing()
    space = SpaceKeeper(
        root / "packs",
        Watermarks(config.space.high, config.space.low, config.space.max_bytes),
        catalog,
        chunks,
        images.forget_without,
        sharing,
        SpaceFigures(),
        min_age_s=config.space.min_age_s,
        served_at=swarm.served_at if swarm is not None else lambda node: None,
    )
    own_snapshots = Snapshotter(
        root / "mounts",
        layers,
        take_over_timeout_s=config.prepare_timeout_s,
        sharing=sharing,
        user="`imgdist mount`",
        make_room=make_room,
    )
    stack.callback(own_snapshots.close)
    await asyncio.to_thread(lambda: database.reserve(mounter.highest_node()))
    await catalog.recover()
    link.start()
    mounts = ImageMounts(images, own_snapshots)
    if swarm is not None:
        swarm.start()
    strays = Strays(root, run / "view", lambda: [layer.store.name for layer in catalog.all()])
    return _LazyNode(catalog, images, mounts, own_snapshots, sharing, layers, strays, keeper, space, swarm)


async def _serve_sockets(
    config: AgentConfig,
    holder: holder_client.Holder,
    node: _LazyNode | None,
    stack: AsyncExitStack,
    tasks: asyncio.TaskGroup,
) -> tuple[Snapshotter, SnapshotsServer, api.Calls]:
    """Answer containerd and the command line: nothing that may wait for a supernode, a view or a disk's worth of
    hashing comes before. What a call needs meanwhile, it mounts by itself."""
    snapshotter = Snapshotter(
        Path(config.root),
        node.layers if node is not None else None,
        take_over_timeout_s=config.prepare_timeout_s,
        sharing=node.sharing if node is not None else None,
        make_room=node.space.make_room if node is not None else no_room,
    )
    stack.callback(snapshotter.close)
    tasks.create_task(snapshotter.run())
    if node is not None:
        tasks.create_task(node.own_snapshots.run())
        tasks.create_task(node.catalog.switch_forever())
        tasks.create_task(node.keeper.run())
        tasks.create_task(node.space.run())
    server = await grpc.serve(snapshotter, socket.socket(fileno=holder.fds["socket:snapshotter"]))
    stack.push_async_callback(_close, server)
    await asyncio.to_thread(lambda: api.application)  # it is loaded now (agent/main.py), while containerd is answered
    seen = _api_node(node, snapshotter) if node is not None else None
    supernodes = supernode_urls(config) if node is not None else config.supernode
    calls = api.Calls()
    application = api.application(seen, config.root, supernodes, calls)
    runner = await api.serve(application, socket.socket(fileno=holder.fds["socket:api"]), shutdown_s=_SHUTDOWN_S)
    stack.push_async_callback(runner.cleanup)
    return snapshotter, server, calls


def _api_node(node: _LazyNode, snapshotter: Snapshotter) -> api.Node:
    draining = Draining(node.catalog, node.layers, (snapshotter, node.own_snapshots))
    return api.Node(node.catalog, node.images, node.mounts, draining, node.space, node.swarm)


async def _recover(node: _LazyNode | None, snapshotter: Snapshotter) -> None:
    """Beside serving: mount again what snapshots use, rescue what a view left that died, unmount what nobody uses."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_tried("containerd's layers", snapshotter.recover()))
        if node is not None:
            tasks.create_task(_tried("the layers of a view that died", node.catalog.rescue()))
            await _tried("mounted images", node.mounts.recover())
            tasks.create_task(Unused(node.catalog, node.sharing).run())
            await _tried("what earlier agents left in the kernel", node.strays.release())
            await _tried("their layers", node.own_snapshots.recover())


async def _tried(what: str, work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except (ImgdistError, OSError, sqlite3.Error) as error:
        log.error("%s are not all as they were before the start: %s", what, error)


async def _close(server: Server) -> None:
    """End its calls before what they use is closed. What they waited for was cancelled; they end at once."""
    server.close()
    try:
        async with asyncio.timeout(_SHUTDOWN_S):
            await server.wait_closed()
    except TimeoutError:
        log.warning("a call of containerd is cut off")


async def _leave(server: SnapshotsServer, calls: api.Calls, node: _LazyNode | None) -> NoReturn:
    """Make room for a successor, at once as soon as nobody waits for an answer of ours."""

    async def farewell() -> None:
        if node is not None and node.swarm is not None:
            await node.swarm.close()

    if node is not None:
        await node.keeper.flush()
    await leave(server, lambda: calls.under_way, node.layers if node is not None else None, farewell)
    log.info("left; the next agent goes on")
    logging.shutdown()
    os._exit(0)


async def _finish(node: _LazyNode, timeout_s: float) -> None:
    """No new work; what is shown is completed and switched, and what could not be is named. What follows, the end of
    calls and closing, has its share of `timeout_s`."""
    node.layers.stop()
    work_s = max(timeout_s - _CLOSING_S, timeout_s / 2)
    _, _, left = await asyncio.gather(
        node.keeper.flush(), _unmount_forgotten(node, work_s), node.catalog.finish(work_s)
    )
    for layer in left:
        present = layer.store.present
        log.error(
            "layer %s stays incomplete (%d of %d blocks): what runs on it gets I/O errors until the agent is back",
            layer.pack_id,
            present.count(),
            present.blocks,
        )


async def _unmount_forgotten(node: _LazyNode, timeout_s: float) -> None:
    """What `imgdist umount` has just freed is not left mounted by a stop that follows at once."""
    try:
        async with asyncio.timeout(timeout_s):
            await node.own_snapshots.cleanup()
    except (ImgdistError, OSError, sqlite3.Error) as error:
        log.warning("layers that nothing uses stay mounted until the next start: %s", error)
