"""Conversion workers and the server they are forked from: what dies with what, and what does not."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import signal
import sys
import tarfile
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from worker_processes import children_of

from imgdist.errors import TemporaryError
from supernode.convert.conversion import Conversion
from supernode.convert.workers import Worker, Workers
from supernode.store import LocalStore

_DEADLINE_S = 20.0


def layer_of(number: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(f"file{number}")
        info.size = 10_000
        tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return gzip.compress(out.getvalue())


def digest_of(layer: bytes) -> str:
    return f"sha256:{hashlib.sha256(layer).hexdigest()}"


async def ended(pid: int) -> None:
    """Wait until a process is gone; fails if it stays."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(watched, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), _DEADLINE_S)
    finally:
        loop.remove_reader(watched)
        os.close(watched)


async def convert(store: LocalStore, workers: Workers, number: int) -> str:
    layer = layer_of(number)
    async with Conversion(store, workers, digest_of(layer)) as conversion:
        await conversion.feed(layer)
        return (await conversion.finish()).pack_id


async def half_fed(conversion: Conversion, number: int) -> None:
    """Until its worker runs and wants more."""
    await conversion.feed(layer_of(number)[:20])
    await anext(conversion.follow())


async def test_many_layers_share_one_server_and_leave_nothing_in_it(store: LocalStore, workers: Workers) -> None:
    assert workers.server_pid is None
    await convert(store, workers, 0)
    server = workers.server_pid
    assert server is not None
    open_before = sorted(os.listdir(f"/proc/{server}/fd"))
    packs = await asyncio.gather(*(convert(store, workers, number) for number in range(1, 8)))
    assert len(set(packs)) == 7
    assert all(store.verify(pack) == [] for pack in packs)
    assert workers.server_pid == server
    assert children_of(server) == []
    assert sorted(os.listdir(f"/proc/{server}/fd")) == open_before
    # A fork copies the calling thread alone, and locks as another one left them.
    assert len(os.listdir(f"/proc/{server}/task")) == 1


async def test_a_worker_that_dies_takes_no_other_with_it(store: LocalStore, workers: Workers) -> None:
    first, second = (Conversion(store, workers, digest_of(layer_of(number))) for number in (1, 2))
    async with first:
        await half_fed(first, 1)
        assert workers.server_pid is not None
        [victim] = children_of(workers.server_pid)
        async with second:
            # The second is forked while the first runs: it must not keep the first's report socket open.
            await half_fed(second, 2)
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(TemporaryError, match="signal 9"):
                await first.finish()
            await second.feed(layer_of(2)[20:])
            result = await second.finish()
    assert store.verify(result.pack_id) == []
    assert store.find(digest_of(layer_of(1))) is None


async def test_a_worker_has_nothing_of_another_or_of_the_server(store: LocalStore, workers: Workers) -> None:
    first, second = (Conversion(store, workers, digest_of(layer_of(number))) for number in (1, 2))
    async with first, second:
        await half_fed(first, 1)
        await half_fed(second, 2)
        assert workers.server_pid is not None
        for pid in children_of(workers.server_pid):
            names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert sum(name.startswith("socket:") for name in names) == 2, names
            assert not [name for name in names if "pidfd" in name or "eventpoll" in name]


async def test_a_dead_server_fails_what_runs_and_is_replaced(
    store: LocalStore, workers: Workers, tmp_path: Path
) -> None:
    conversion = Conversion(store, workers, digest_of(layer_of(1)))
    with pytest.raises(TemporaryError, match="forked from"):
        async with conversion:
            await half_fed(conversion, 1)
            server = workers.server_pid
            assert server is not None
            [worker] = children_of(server)
            os.kill(server, signal.SIGKILL)
            await ended(worker)
            await conversion.finish()
    assert list((tmp_path / "store" / "packs").iterdir()) == []
    assert await convert(store, workers, 1)
    assert workers.server_pid != server


async def test_an_idle_server_ends_and_comes_back(store: LocalStore) -> None:
    async with Workers(idle_s=0) as workers:
        layer = layer_of(1)
        async with Conversion(store, workers, digest_of(layer)) as conversion:
            await half_fed(conversion, 1)
            server = workers.server_pid
            assert server is not None
            await conversion.feed(layer[20:])
            await conversion.finish()
        await ended(server)
        assert workers.server_pid is None
        assert await convert(store, workers, 2)


_SUPERNODE = """
import asyncio, sys
from pathlib import Path
from supernode.convert.conversion import Conversion
from supernode.convert.workers import Workers
from supernode.store import LocalStore

async def main():
    store = LocalStore(Path(sys.argv[1]))
    store.recover()
    async with Workers() as workers, Conversion(store, workers, "sha256:" + "ab" * 32) as conversion:
        await anext(conversion.follow())
        server = workers.server_pid
        print(server, Path(f"/proc/{server}/task/{server}/children").read_text(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_server_and_workers_end_with_the_supernode(tmp_path: Path) -> None:
    supernode = await asyncio.create_subprocess_exec(sys.executable, "-c", _SUPERNODE, tmp_path, stdout=PIPE)
    assert supernode.stdout is not None
    try:
        said = await asyncio.wait_for(supernode.stdout.readline(), _DEADLINE_S)
    finally:
        supernode.kill()
        await supernode.wait()
    pids = [int(pid) for pid in said.split()]
    assert len(pids) == 2
    for pid in pids:
        await ended(pid)


class _Babbling(Workers):
    """Hands out workers whose reports are `lines`."""

    def __init__(self, lines: bytes) -> None:
        super().__init__()
        self._lines = lines

    async def start(self, plan: dict[str, object]) -> Worker:
        worker = await super().start(plan)
        worker.reports.feed_data(self._lines)
        return worker


@pytest.mark.parametrize(
    "lines",
    [
        b"no json\n",
        b"[]\n",
        b"7\n",
        b'{"progress": {}}\n',
        b'{"progress": {"chunks": "x", "index_bytes": "y"}}\n',
        b'{"ended": "?"}\n',
        b'{"done": 1}\n{"progress": 0}\n',
        b"x" * 200_000 + b"\n",
    ],
)
async def test_what_a_worker_says_is_not_trusted(store: LocalStore, tmp_path: Path, lines: bytes) -> None:
    layer = layer_of(1)
    async with _Babbling(lines) as workers:
        conversion = Conversion(store, workers, digest_of(layer))
        with pytest.raises(TemporaryError, match="made no sense"):
            async with conversion:
                await conversion.feed(layer)
                await conversion.finish()
        with pytest.raises(TemporaryError):
            await anext(conversion.follow())
    assert list((tmp_path / "store" / "packs").iterdir()) == []
