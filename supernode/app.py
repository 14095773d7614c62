"""The supernode daemon: builds every part, serves until told to stop."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from socket import socket

from imgdist import daemon, holder_client, rootformat
from imgdist.config import SupernodeConfig
from imgdist.distribution.server import PullApi
from imgdist.errors import ImgdistError, UsageError
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey, open_key
from supernode import serving
from supernode.api import application, metrics_application
from supernode.assembly import assembled
from supernode.chunkprocess import ChunkProcess
from supernode.metrics import Metrics

log = logging.getLogger("imgdist.supernode")


def main(config: SupernodeConfig) -> int:
    """Run the daemon in the foreground. Returns the exit code; raises ImgdistError for what keeps it from starting."""
    daemon.configure_logging(config.log_format)
    daemon.end_with_threads()
    stopped_by = asyncio.run(serve(config))
    return 128 + signal.SIGINT if stopped_by == signal.SIGINT else 0


async def serve(config: SupernodeConfig) -> int:
    """Serve until SIGTERM or SIGINT, and return which. Raises UsageError for addresses that need --allow-plain,
    ImgdistError for a root or an address that cannot be had."""
    listen, chunks, metrics_listen = addresses(config)
    holder = holder_client.connect() if holder_client.under_holder() else None
    rootformat.check(Path(config.root))
    key = open_key(config.access.key_file)
    _warn_of_lending(config, listen, key)
    fds = holder.fds if holder is not None else {}
    metrics = Metrics()
    chunk_process = ChunkProcess(
        Path(config.root), chunks, metrics.sent, fds.get("socket:chunks"), config.access.key_file
    )
    try:
        with ExitStack() as held:
            async with asyncio.TaskGroup() as tasks:
                bodies = await _stand_by(holder, chunk_process, tasks) if holder and holder.standby else None
                root = held.enter_context(_root(config.root))
                if "socket:supernode" in fds:
                    listener = held.enter_context(socket(fileno=fds["socket:supernode"]))
                else:
                    listener = held.enter_context(_listening(listen))
                if "socket:chunks" not in fds:
                    held.enter_context(_listening(chunks)).close()  # only to tell at once, in one line, if it is taken
                metrics_listener = held.enter_context(_listening(metrics_listen)) if metrics_listen else None
                bodies = bodies or tasks.create_task(chunk_process.run())
                try:
                    return await _serve(config, root, listener, chunk_process, metrics, metrics_listener, holder, key)
                finally:
                    bodies.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _stand_by(
    holder: holder_client.Holder, chunk_process: ChunkProcess, tasks: asyncio.TaskGroup
) -> asyncio.Task[None]:
    """Wait for a predecessor's end. Bodies are served before it: two processes may do that side by side, so that no
    reader waits for the change. SIGTERM and SIGINT end this process meanwhile, and with it that one."""
    bodies = tasks.create_task(chunk_process.run())
    await chunk_process.wait_ready()
    if not await asyncio.to_thread(holder.stand_by):
        raise ImgdistError("the holder is gone, or does without this supernode")
    return bodies


def _warn_of_lending(config: SupernodeConfig, listen: Address, key: ClusterKey | None) -> None:
    """Say so where whoever reaches this port counts as a node, and gets what our credentials open."""
    registry = config.registry
    has_credentials = registry.docker_config or registry.pull_secrets or registry.kubernetes_secrets
    if key is None and not listen.is_local and has_credentials:
        log.warning(
            "whoever reaches %s gets the images that the credentials of [registry] open: set access.key_file, or keep "
            "everybody but nodes from it",
            listen,
        )


def addresses(config: SupernodeConfig) -> tuple[Address, Address, Address | None]:
    """Where to listen: control API, chunk bodies, metrics. Raises UsageError."""
    listen = Address.parse(config.listen)
    chunks = Address.parse(config.chunk_listen) if config.chunk_listen else beside(listen)
    metrics = Address.parse(config.metrics_listen) if config.metrics_listen else None
    for flag, address in (("--listen", listen), ("--chunk-listen", chunks), ("--metrics-listen", metrics)):
        if address and not address.is_local and not config.allow_plain:
            raise UsageError(
                f"{flag} {address}: without TLS only loopback addresses and unix sockets are allowed; "
                "--allow-plain listens there all the same"
            )
    return listen, chunks, metrics


def beside(listen: Address) -> Address:
    """Where chunk bodies are served unless said: the next port, or chunks.sock in the same directory."""
    if listen.path:
        return Address(path=os.path.join(os.path.dirname(listen.path), "chunks.sock"))
    return Address(listen.host, listen.port + 1)


async def _serve(
    config: SupernodeConfig,
    root: Path,
    listener: socket,
    chunk_process: ChunkProcess,
    metrics: Metrics,
    metrics_listener: socket | None,
    holder: holder_client.Holder | None,
    key: ClusterKey | None,
) -> int:
    told_to_stop = serving.signals()
    daemon.allow_open_files()
    daemon.forbid_core_dumps()
    advertised = Address.parse(config.chunk_advertise) if config.chunk_advertise else None

    def chunks() -> Address | None:
        return (advertised or chunk_process.address) if chunk_process.is_ready else None

    async with AsyncExitStack() as held:
        supernode = await assembled(config, root, metrics, key, chunks, held)
        parts = supernode.parts
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(worker.run()) for worker in supernode.workers]
            await chunk_process.wait_ready()
            async with AsyncExitStack() as servers:
                control = application(parts)
                control.add_routes(PullApi(supernode.registry, metrics.pulled).routes())
                await serving.answer(control, listener, servers)
                if metrics_listener is not None:
                    await serving.answer(metrics_application(parts), metrics_listener, servers)
                servers.callback(parts.tracker.close)
                stopped_by = await serving.until_stopped(told_to_stop, holder, parts.fetcher, parts.blobs)
            for task in work:
                task.cancel()
        return stopped_by


@contextmanager
def _root(path: str) -> Iterator[Path]:
    """The root directory, made, and held against a second supernode for as long as this one runs."""
    root = Path(path).absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / "traces").mkdir(exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ImgdistError(f"--root {root}: expected a writable directory: {error.strerror}; choose another") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        rootformat.mark(root)
        yield root
    except BlockingIOError:
        raise ImgdistError(f"--root {root}: another supernode uses it; stop it or choose another directory") from None
    finally:
        os.close(lock)


@contextmanager
def _listening(address: Address) -> Iterator[socket]:
    """A listening socket; its file, if it has one, goes with it."""
    with address.listen() as listener:
        try:
            yield listener
        finally:
            if address.path:
                with suppress(FileNotFoundError):
                    os.unlink(address.path)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that made a task group end; the others followed from it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
