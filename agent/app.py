"""The agent's composition root; agent/main.py is where the process begins."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from grpclib.server import Server

from agent import api
from agent.draining import Draining
from agent.launch import supernode_urls
from agent.lazynode import LazyNode, lazy_node
from agent.leaving import leave
from agent.listing import Trust
from agent.mirror import service as mirror
from agent.mirror.seen import SeenTags
from agent.snapshotter import grpc
from agent.snapshotter.core import Snapshotter
from agent.snapshotter.server import SnapshotsServer
from agent.space.room import no_room
from agent.supernode_client import SupernodeClient
from agent.supernodes import Supernodes
from agent.unused import Unused
from imgdist import daemon, holder_client, rootformat
from imgdist.config import AgentConfig
from imgdist.errors import ImgdistError

log = logging.getLogger("imgdist.agent")

_SWITCH_INTERVAL_S = 0.0005  # a miss crosses several threads; the default 5 ms is what each might wait for the GIL


_OWN_ATTEMPTS, _OWN_RETRY_S = 30, 0.1
_SHUTDOWN_S = 1.0  # for answers of the API under way at a stop; what they wait for has been cancelled by then

_CLOSING_S = 3.0


class _Stopped(Exception):
    """SIGTERM, or the holder is gone: ends the task group in order."""


def main() -> int:
    """Serve until SIGTERM, or until the holder is gone."""
    config = msgspec.json.decode(sys.argv[1], type=AgentConfig)
    daemon.configure_logging(config.log_format)
    daemon.end_with_threads()
    daemon.forbid_core_dumps()
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
                node = await lazy_node(config, holder, stack, tasks) if lazy else None
                if not stop.is_set():
                    snapshotter, server, calls = await _serve_sockets(config, holder, node, stack, tasks)
                    gc.freeze()  # what is here now stays: to look through it for garbage takes 40 ms of every thread
                    holder.ready()
                    tasks.create_task(_give_signs_of_life(holder, config.watchdog_s))
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


async def _give_signs_of_life(holder: holder_client.Holder, watchdog_s: float) -> None:
    """Tell the holder that this event loop turns: clients of the mirror wait for ever for an agent that hangs (tried
    with containerd 1.6), but go on when their connections break."""
    while watchdog_s:
        holder.alive()
        await asyncio.sleep(watchdog_s / 8)


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


async def _serve_sockets(
    config: AgentConfig,
    holder: holder_client.Holder,
    node: LazyNode | None,
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
        tasks.create_task(node.withdrawal.run())
        tasks.create_task(node.idle_prover.run())
    server = await grpc.serve(snapshotter, socket.socket(fileno=holder.fds["socket:snapshotter"]))
    stack.push_async_callback(_close, server)
    await asyncio.to_thread(lambda: api.application)  # it is loaded now (agent/main.py), while containerd is answered
    seen = _api_node(node, snapshotter) if node is not None else None
    supernodes = supernode_urls(config) if node is not None else config.supernode
    calls, tags = api.Calls(), SeenTags()
    application = api.application(seen, config.root, supernodes, calls, tags)
    runner = await api.serve(application, socket.socket(fileno=holder.fds["socket:api"]), shutdown_s=_SHUTDOWN_S)
    stack.push_async_callback(runner.cleanup)
    if (listener := holder.fds.get("socket:mirror")) is not None:
        await _serve_mirror(config, socket.socket(fileno=listener), node, stack, calls, tags)
    return snapshotter, server, calls


async def _serve_mirror(
    config: AgentConfig,
    listener: socket.socket,
    node: LazyNode | None,
    stack: AsyncExitStack,
    calls: api.Calls,
    tags: SeenTags,
) -> None:
    if node is None:
        supernodes = Supernodes([SupernodeClient(url) for url in config.supernode])
        stack.push_async_callback(supernodes.close)
    else:
        supernodes = node.supernodes
    blobs = [node.blobs] if node is not None else []
    runner = await mirror.serve(supernodes, blobs, tags, listener, calls.counted, shutdown_s=_SHUTDOWN_S)
    stack.push_async_callback(runner.cleanup)


def _api_node(node: LazyNode, snapshotter: Snapshotter) -> api.Node:
    draining = Draining(node.catalog, node.layers, (snapshotter, node.own_snapshots))
    trust = Trust(node.prover, node.withdrawal, node.revocations)
    return api.Node(node.catalog, node.images, node.mounts, draining, node.space, trust, node.swarm)


async def _recover(node: LazyNode | None, snapshotter: Snapshotter) -> None:
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


async def _leave(server: SnapshotsServer, calls: api.Calls, node: LazyNode | None) -> NoReturn:
    """Make room for a successor, at once as soon as nobody waits for an answer of ours."""

    async def farewell() -> None:
        if node is not None and node.swarm is not None:
            await node.swarm.close()

    if node is not None:
        node.images.known.flush()
        await node.keeper.flush()
    await leave(server, lambda: calls.under_way, node.layers if node is not None else None, farewell)
    log.info("left; the next agent goes on")
    logging.shutdown()
    os._exit(0)


async def _finish(node: LazyNode, timeout_s: float) -> None:
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


async def _unmount_forgotten(node: LazyNode, timeout_s: float) -> None:
    """What `imgdist umount` has just freed is not left mounted by a stop that follows at once."""
    try:
        async with asyncio.timeout(timeout_s):
            await node.own_snapshots.cleanup()
    except (ImgdistError, OSError, sqlite3.Error) as error:
        log.warning("layers that nothing uses stay mounted until the next start: %s", error)
