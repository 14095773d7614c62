"""The supernode daemon: builds every part, serves until told to stop."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from socket import socket

from aiohttp import web

from imgdist import daemon, holder_client, rootformat
from imgdist.config import SupernodeConfig
from imgdist.distribution.server import PullApi
from imgdist.errors import ImgdistError, UsageError
from imgdist.oci import transport
from imgdist.oci.patterns import Patterns
from imgdist.oci.reference import is_sha256
from imgdist.oci.settings import RegistrySettings
from imgdist.pack.kinds import Kind
from imgdist.space import Watermarks
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey, open_key
from supernode.access.access import Access
from supernode.access.grants import Grants
from supernode.access.provenance import Provenance
from supernode.api import Parts, application, metrics_application
from supernode.blobs.source import Blobs
from supernode.catalog import Catalog
from supernode.chains import Chains
from supernode.chunkprocess import ChunkProcess
from supernode.convert.conversion import Conversion
from supernode.convert.workers import Workers
from supernode.database import Database
from supernode.fetch import Fetcher, Origin
from supernode.freshness import Freshness
from supernode.keychain import keychain
from supernode.metrics import Metrics
from supernode.proving.prover import Prover
from supernode.registries import Registries
from supernode.registry.direct import DirectBlobs
from supernode.registry.learning import Learning
from supernode.registry.pullthrough import PullThrough
from supernode.registry.reachable import Answering
from supernode.resolve import Resolver
from supernode.space.keeper import SpaceKeeper
from supernode.store import LocalStore
from supernode.tags import Tags
from supernode.traces import Traces
from supernode.tracker.session import Tracker

log = logging.getLogger("imgdist.supernode")

SHUTDOWN_S = 1.0
"""How long answers under way may take after SIGTERM. Who follows an index resumes at the next supernode."""

PATIENCE_S = 30.0
"""How long a successor waits for the end of conversions: what is cut off is read from the registry a second time."""


def main(config: SupernodeConfig) -> int:
    """Run the daemon in the foreground. Returns the exit code; raises ImgdistError for what keeps it from starting."""
    daemon.configure_logging(config.log_format)
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
                serving = await _stand_by(holder, chunk_process, tasks) if holder and holder.standby else None
                root = held.enter_context(_root(config.root))
                if "socket:supernode" in fds:
                    listener = held.enter_context(socket(fileno=fds["socket:supernode"]))
                else:
                    listener = held.enter_context(_listening(listen))
                if "socket:chunks" not in fds:
                    held.enter_context(_listening(chunks)).close()  # only to tell at once, in one line, if it is taken
                metrics_listener = held.enter_context(_listening(metrics_listen)) if metrics_listen else None
                serving = serving or tasks.create_task(chunk_process.run())
                try:
                    return await _serve(config, root, listener, chunk_process, metrics, metrics_listener, holder, key)
                finally:
                    serving.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _stand_by(
    holder: holder_client.Holder, chunk_process: ChunkProcess, tasks: asyncio.TaskGroup
) -> asyncio.Task[None]:
    """Wait for a predecessor's end. Bodies are served before it: two processes may do that side by side, so that no
    reader waits for the change. SIGTERM and SIGINT end this process meanwhile, and with it that one."""
    serving = tasks.create_task(chunk_process.run())
    await chunk_process.wait_ready()
    if not await asyncio.to_thread(holder.stand_by):
        raise ImgdistError("the holder is gone, or does without this supernode")
    return serving


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
    told_to_stop = _signals()
    daemon.allow_open_files()
    daemon.forbid_core_dumps()
    async with AsyncExitStack() as held:
        store = LocalStore(root)
        await asyncio.to_thread(store.recover)
        database = _database(root / "supernode.db")
        held.callback(database.close)
        http = await held.enter_async_context(transport.session())
        settings = RegistrySettings(config.registry, config.plain_http)
        provenance = Provenance(database)
        answering = Answering(metrics)
        registries = Registries(http, answering, settings, keychain(config.registry, http), witness=provenance)
        limits = config.limits.limits()
        catalog, chains = Catalog(database, limits), Chains(database)
        freshness = Freshness(config.tags.ttl_s, config.tags.stale_if_error_s, config.tags.ttls)
        tags = Tags(registries, catalog, metrics.tag_asked)
        resolver = Resolver(registries, catalog, chains, tags, provenance.has if key else None)
        workers = await held.enter_async_context(Workers())

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

        blobs = Blobs(store, registries)

        def read(origin: Origin) -> AsyncGenerator[bytes, None]:
            if config.convert.keep_blobs or blobs.is_here(origin.layer.digest):
                return blobs.read(origin.blob, origin.layer.size)
            return registries.client(origin.host).blob(origin.repository, origin.layer)

        async def holds(digest: str) -> bool:
            is_kept = blobs.is_here(digest) or (is_sha256(digest) and store.find(digest) is not None)
            return is_kept or await catalog.document(digest) is not None

        access = Access(
            registries,
            Grants(config.access.remember_s, config.access.outage_s),
            provenance,
            Patterns(config.access.shared, "access.shared"),
            holds,
            metrics.authorised,
        )
        fetcher = Fetcher(store, catalog, read, convert, config.convert.layers, metrics.converted)
        await fetcher.load()
        tracker = Tracker(metrics, probe=config.tracker.probe, revoked=store.revoked.all)
        prover = Prover(
            store,
            metrics,
            every_s=config.proof.every_s,
            revoked=tracker.revoke,
            again=fetcher.again,
            busy=lambda: bool(fetcher.jobs),
        )
        space = SpaceKeeper(
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
        advertised = Address.parse(config.chunk_advertise) if config.chunk_advertise else None
        parts = Parts(
            root=root,
            resolver=resolver,
            fetcher=fetcher,
            blobs=blobs,
            store=store,
            chains=chains,
            traces=Traces(root / "traces"),
            metrics=metrics,
            tracker=tracker,
            space=space,
            prover=prover,
            access=access,
            key=key,
            chunks=lambda: (advertised or chunk_process.address) if chunk_process.is_ready else None,
        )
        learning = Learning(resolver, fetcher.learn)
        registry = PullThrough(
            registries,
            catalog,
            tags,
            resolver,
            freshness,
            access,
            blobs,
            DirectBlobs(registries),
            lambda digest: store.find(digest, Kind.RAW) is not None,
            answering,
            learning,
        )
        async with asyncio.TaskGroup() as tasks:
            parts_at_work = (blobs, access, fetcher, tracker, space, prover, learning)
            work = [tasks.create_task(part.run()) for part in parts_at_work]
            await chunk_process.wait_ready()
            async with AsyncExitStack() as servers:
                control = application(parts)
                control.add_routes(PullApi(registry, metrics.pulled).routes())
                await _answer(control, listener, servers)
                if metrics_listener is not None:
                    await _answer(metrics_application(parts), metrics_listener, servers)
                servers.callback(tracker.close)
                stopped_by = await _until(told_to_stop, holder, fetcher, blobs)
            for task in work:
                task.cancel()
        return stopped_by


async def _answer(app: web.Application, listener: socket, servers: AsyncExitStack) -> None:
    """Answer requests until `servers` is closed."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    servers.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=1024).start()


def _signals() -> asyncio.Future[int]:
    """Gets the number of the first SIGTERM or SIGINT, from now on."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _tell, told, number)
    return told


def _tell(told: asyncio.Future[int], number: int) -> None:
    if not told.done():
        told.set_result(number)


async def _until(
    told_to_stop: asyncio.Future[int], holder: holder_client.Holder | None, fetcher: Fetcher, blobs: Blobs
) -> int:
    """Say that we serve; return the signal that ends it. A holder that goes away is as good as one, and so is one that
    asks us to make room, once no layer is being converted and no blob fetched."""
    if holder is None:
        daemon.announce_ready()
        return await told_to_stop
    loop, retire = asyncio.get_running_loop(), asyncio.Event()

    def heard() -> None:
        word = holder.heard()
        if word is not None and "retire" in word:
            retire.set()
        else:
            _tell(told_to_stop, signal.SIGTERM)

    async def make_room() -> None:
        await retire.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while jobs := list(fetcher.jobs.values()):
                    await jobs[0].over.wait()
                await blobs.settled()
        _tell(told_to_stop, signal.SIGTERM)

    loop.add_reader(holder.fileno(), heard)
    leaving = loop.create_task(make_room())
    try:
        holder.ready()
        return await told_to_stop
    finally:
        leaving.cancel()
        loop.remove_reader(holder.fileno())


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


def _database(path: Path) -> Database:
    try:
        return Database(path)
    except sqlite3.Error as error:
        raise ImgdistError(f"{path}: cannot open the database: {error}; if it is damaged, remove it") from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that made a task group end; the others followed from it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
