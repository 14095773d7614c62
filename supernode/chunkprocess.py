"""Keeps the process alive that serves chunk bodies: apart from the control API's, so that neither waits for the other's
interpreter lock."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

from imgdist.errors import ImgdistError
from imgdist.wire.address import Address

log = logging.getLogger("imgdist.chunks")

BACKOFF_S = 0.05
BACKOFF_MAX_S = 5.0
STABLE_S = 10.0
"""After a life as long the next restart is quick again."""
STOP_S = 3.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ChunkProcess:
    """`python -m supernode.chunkserver`, restarted when it dies. It prints its address once it listens.

    `on_sent(kind, bytes)` is told about once a second what it has sent since, by kind of request: demand, trace, fill.
    """

    def __init__(
        self,
        root: Path,
        address: Address,
        on_sent: Callable[[str, int], None],
        listener: int | None = None,
        key_file: str = "",
    ) -> None:
        """`listener`: the descriptor of a socket that listens at `address` already; `key_file`: the cluster's key."""
        self._command = [sys.executable, "-m", "supernode.chunkserver", "--root", str(root), "--listen", str(address)]
        if key_file:
            self._command += ["--key-file", key_file]
        self._passed = () if listener is None else (listener,)
        if listener is not None:
            self._command += ["--listener", str(listener)]
        self._on_sent = on_sent
        self._ready = asyncio.Event()
        self.address = address
        """Where it listens; with port 0 the real port is known once it is ready."""

    @property
    def is_ready(self) -> bool:
        """Whether chunk bodies are served now."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Return when chunk bodies are served."""
        await self._ready.wait()

    async def run(self) -> None:
        """Start it, and start it again whenever it ends, until cancelled; then it is stopped.

        Raises ImgdistError if it has never served.
        """
        backoff_s, served = BACKOFF_S, False
        while True:
            started = time.monotonic()
            code = await self._run_once()
            served = served or self._ready.is_set()
            self._ready.clear()
            if not served:
                raise ImgdistError(f"the chunk server on {self.address} does not start: it ended with code {code}")
            if time.monotonic() - started >= STABLE_S:
                backoff_s = BACKOFF_S
            log.warning("the chunk server ended with code %d: starting it again in %.2f s", code, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)

    async def _run_once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=DEVNULL,
            stdout=PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            pass_fds=self._passed,
        )
        try:
            assert process.stdout is not None
            sent: dict[str, int] = {}  # of this process: the next begins at 0
            async for line in process.stdout:
                if not line.endswith(b"\n"):  # killed in the middle of it
                    break
                said = json.loads(line)
                if "address" in said:
                    self.address = Address.parse(said["address"])
                    self._ready.set()
                for kind, total in said.get("sent", {}).items():
                    self._on_sent(kind, total - sent.get(kind, 0))
                    sent[kind] = total
            return await process.wait()
        finally:
            await asyncio.shield(_stop(process))


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _die_with_parent() -> None:
    """In the child before exec: a supernode that is killed must not leave its port taken (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
