"""Conversion workers, as the event loop starts them: forks of one server, which runs only while there is work."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from asyncio.subprocess import Process
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from imgdist.errors import TemporaryError

IDLE_S = 30.0
"""How long the server outlives its last worker: it takes 22 MiB, 120 ms of CPU to start, and the layers of an image
come in less than this. A guess."""
_STOP_S = 5.0


class Worker:
    """One worker: `layer` takes the compressed layer, `reports` gives its JSON lines and ends when it is gone."""

    def __init__(self, layer: asyncio.StreamWriter, reports: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        self.layer = layer
        self.reports = reports
        self._line = line

    def kill(self) -> None:
        """End it, if it still runs. It is gone, and with it all that it could write, when `reports` ends."""
        if not self._line.is_closing():
            self._line.write_eof()

    def close(self) -> None:
        """Let go of the sockets."""
        self.layer.transport.abort()
        self._line.transport.abort()


class Workers:
    """Starts workers. The server that forks them is started for the first, and ended when none ran for `idle_s`.

    A server that died is replaced by the next `start`; the workers died with it. `async with`: on leaving, the
    server is gone.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._running = 0
        self._control: socket.socket | None = None
        self._server: Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        # Two layers that begin at once must not start a server each.
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss()
        await asyncio.shield(self._gone())

    @property
    def server_pid(self) -> int | None:
        """The server's process, while there is one."""
        return self._server.pid if self._control is not None and self._server is not None else None

    async def start(self, plan: dict[str, Any]) -> Worker:
        """A worker for `plan` (see `supernode.convert.worker`); `release` it. `TemporaryError` if none can be had."""
        self._keep()
        try:
            with ExitStack() as unless_started:
                layer, their_layer = _pair(unless_started)
                reports, their_reports = _pair(unless_started)
                with their_layer, their_reports:
                    await self._send(json.dumps(plan).encode(), [their_layer.fileno(), their_reports.fileno()])
                _, writer = await asyncio.open_unix_connection(sock=layer)
                reader, line = await asyncio.open_unix_connection(sock=reports)
                unless_started.pop_all()
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise TemporaryError(f"cannot start a conversion worker: {error.strerror or error}") from error
            raise
        return Worker(writer, reader, line)

    def release(self, worker: Worker) -> None:
        """The worker is gone and was read to its end."""
        worker.close()
        self._leave()

    def _keep(self) -> None:
        self._running += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._dismiss)

    async def _send(self, plan: bytes, descriptors: list[int]) -> None:
        async with self._starting:
            if self._control is not None:
                try:
                    socket.send_fds(self._control, [plan], descriptors)
                    return
                except (BrokenPipeError, ConnectionError):
                    self._dismiss()
            await self._gone()
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.setblocking(False)
            with theirs:
                self._server = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "supernode.convert.forkserver", stdin=theirs.fileno()
                )
            socket.send_fds(self._control, [plan], descriptors)

    def _dismiss(self) -> None:
        """Have the server end."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._control is not None:
            self._control.close()
            self._control = None

    async def _gone(self) -> None:
        """Wait until a dismissed server is gone."""
        if self._server is None:
            return
        try:
            await asyncio.wait_for(self._server.wait(), _STOP_S)
        except TimeoutError:
            self._server.kill()
            await self._server.wait()
        self._server = None


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    return ours, theirs
