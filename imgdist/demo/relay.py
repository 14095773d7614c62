"""Added round-trip time where the kernel has no netem: `python -m imgdist.demo.relay RTT_MS LISTEN=TARGET...`.

Each byte waits half the round trip in each direction, and a new connection's first bytes one round trip more (the
handshake). Bytes in flight are not limited below 16 MiB, far above any link x RTT product of the demo.
"""

from __future__ import annotations

import asyncio
import sys

_PIECE_BYTES = 256 * 1024
# Pieces under way in one direction: 64 x 256 KiB covers 1 Gbit/s x 100 ms.
_PIECES = 64


class Relay:
    """Forwards connections made to one address to another, `rtt_s` later."""

    def __init__(self, target_host: str, target_port: int, rtt_s: float) -> None:
        self._target = (target_host, target_port)
        self._rtt_s = rtt_s

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listen; port 0 takes a free one."""
        return await asyncio.start_server(self._connection, host, port, limit=_PIECE_BYTES)

    async def _connection(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        opened = asyncio.get_running_loop().time()
        try:
            far_in, far_out = await asyncio.open_connection(*self._target, limit=_PIECE_BYTES)
        except OSError:
            near_out.close()
            return
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._forward(near_in, far_out, opened + self._rtt_s))
                directions.create_task(self._forward(far_in, near_out, opened))
        except* OSError:
            pass  # one side reset the connection: both ends close below
        finally:
            near_out.close()
            far_out.close()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, not_before_s: float) -> None:
        """One direction: a reader that stamps pieces, a writer that holds each until its time has come."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)

        async def read() -> None:
            while True:
                piece = await source.read(_PIECE_BYTES)
                await under_way.put((max(loop.time(), not_before_s) + self._rtt_s / 2, piece))
                if not piece:
                    return

        async def write() -> None:
            while True:
                due_s, piece = await under_way.get()
                await asyncio.sleep(due_s - loop.time())
                if not piece:
                    if sink.can_write_eof():
                        sink.write_eof()
                    return
                sink.write(piece)
                await sink.drain()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            tasks.create_task(write())


async def _main(rtt_ms: str, *routes: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        for route in routes:
            listen, target = (address.rsplit(":", 1) for address in route.split("="))
            relay = Relay(target[0], int(target[1]), float(rtt_ms) / 1000)
            server = await relay.serve(listen[0], int(listen[1]))
            tasks.create_task(server.serve_forever())
        print("ready", file=sys.stderr, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
