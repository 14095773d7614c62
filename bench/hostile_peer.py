"""A hostile member of a swarm: `python -m bench.hostile_peer HOST:PORT SUPERNODE_URL REFERENCE STORE NUMBER`.

It joins at the tracker, says on the mesh that it has every chunk of the image, and answers each request for chunks with
a lie (bench/hostile_answers.py): another one for each agent that asks, NUMBER says which is first. STORE is the
supernode's root: lies are made of true bodies without costing a link anything. Prints `ready`; SIGTERM ends it, and
then it prints one JSON line: by the host of each agent its lie, requests and chunks asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from bench.hostile_answers import LIES
from imgdist.api import JsonApi
from imgdist.errors import ProtocolError
from imgdist.pack.index import Index
from imgdist.pack.kinds import early_name
from imgdist.wire import mesh, tracker
from imgdist.wire.requests import BodyRequest, ChunkRequest, HelloRequest, RequestDecoder
from imgdist.wire.responses import SWITCHING, encode_head
from supernode.store import LocalStore
from supernode.store.reader import PackReader

_KEEP_ALIVE_S = 5.0
_AGAIN_S = 1.0
_PIECE = 1 << 16


@dataclass(slots=True)
class Victim:
    """What an agent got here."""

    lie: str
    requests: int = 0
    chunks: int = 0


class HostilePeer:
    """One member: an image that it claims to have, agents that it lies to."""

    def __init__(self, address: str, supernode_url: str, reference: str, store: LocalStore, number: int) -> None:
        self._address = address
        self._supernode_url = supernode_url
        self._number = number
        self._node = os.urandom(16).hex()
        self._opens: list[mesh.Open] = []
        self._shares: list[tracker.Share] = []
        self._packs: dict[str, tuple[Index, PackReader]] = {}
        self._known: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.victims: dict[str, Victim] = {}
        image = JsonApi(supernode_url, "the supernode").post("/v1/resolve", {"reference": reference})
        for layer in image["layers"]:
            self._claim(store, early_name(layer["digest"]), layer["pack_id"])

    def _claim(self, store: LocalStore, name: str, pack: str) -> None:
        index, reader = store.index(pack), store.open(pack)
        assert reader is not None, f"pack {pack} is not in the store"
        count = index.chunk_count
        self._packs[name] = self._packs[pack] = index, reader
        self._opens.append(mesh.open_bits(len(self._opens), name, pack, count, (1 << count) - 1))
        self._shares.append(tracker.Share(name, count, count))

    async def run(self) -> None:
        """Until cancelled."""
        host, _, port = self._address.rpartition(":")
        async with await asyncio.start_server(self._serve, host, int(port)):
            print("ready", flush=True)
            while True:
                try:
                    await self._be_member(int(port))
                except aiohttp.ClientError:
                    await asyncio.sleep(_AGAIN_S)

    async def _be_member(self, port: int) -> None:
        """Join and look for victims until the tracker closes."""
        span = (tracker.VERSION_MIN, tracker.VERSION_MAX)
        join = tracker.Join(*span, self._node, "liar", self._address, port, "", tuple(self._shares))
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self._supernode_url + tracker.PATH) as socket,
        ):
            await socket.send_bytes(tracker.encode(join))
            async for message in socket:
                told = tracker.decode_from_tracker(message.data)
                for peer in told.peers if isinstance(told, tracker.Peers) else ():
                    if peer.node not in self._known:
                        self._known.add(peer.node)
                        task = asyncio.create_task(self._visit(peer.address))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        raise aiohttp.ClientConnectionError("the tracker has closed")

    async def _visit(self, address: str) -> None:
        """Tell an agent what we claim, without waiting to be found."""
        host, _, port = address.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(mesh.upgrade_request(address))
            await self._talk(reader, writer)
        except OSError:
            return

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = RequestDecoder()
        try:
            while data := await reader.read(_PIECE):
                for request in decoder.feed(data):
                    if isinstance(request, HelloRequest):
                        body = tracker.encode(tracker.Hello(self._node, mesh.VERSION, mesh.VERSION))
                        writer.write(encode_head(200, len(body)) + body)
                    elif isinstance(request, BodyRequest):
                        if not await self._lie(writer, request):
                            return
                    else:
                        writer.write(SWITCHING)
                        await self._talk(reader, writer)
        except (OSError, ProtocolError):
            return
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The mesh: we have everything. What the other side has is of no interest."""
        hello = mesh.Hello(mesh.VERSION, mesh.VERSION, self._node, self._address, "", "liar")
        told: list[mesh.Message] = [hello, *self._opens]
        writer.write(b"".join(map(mesh.encode, told)))
        try:
            while True:
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        if not await reader.read(_PIECE):
                            return
                except TimeoutError:
                    writer.write(mesh.encode(mesh.Peers()))
        finally:
            writer.close()

    async def _lie(self, writer: asyncio.StreamWriter, request: BodyRequest) -> bool:
        """Answer; whether the connection can go on."""
        host = writer.get_extra_info("peername")[0]
        names = list(LIES)
        victim = self.victims.setdefault(host, Victim(names[(self._number + len(self.victims)) % len(names)]))
        if not isinstance(request, ChunkRequest) or request.name not in self._packs:
            return False
        victim.requests += 1
        victim.chunks += len(request.numbers)
        index, reader = self._packs[request.name]
        for piece in LIES[victim.lie](request.numbers, index, reader.body):
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            else:
                await asyncio.sleep(piece)
        return victim.lie not in ("misframed", "cut")


async def _run(peer: HostilePeer) -> None:
    task = asyncio.ensure_future(peer.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Lie until SIGTERM."""
    parser = argparse.ArgumentParser(prog="bench.hostile_peer", description=__doc__)
    for name in ("address", "supernode_url", "reference"):
        parser.add_argument(name)
    parser.add_argument("store", type=Path)
    parser.add_argument("number", type=int)
    args = parser.parse_args(arguments)
    peer = HostilePeer(args.address, args.supernode_url, args.reference, LocalStore(args.store), args.number)
    asyncio.run(_run(peer))
    print(json.dumps({host: asdict(victim) for host, victim in peer.victims.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
