"""Programs that several threads start and wait for, ended together when there is no use for them any more."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from resource import struct_rusage

from imgdist.errors import ImgdistError


class Programs:
    """A context manager: leaving it by an exception, as Ctrl-C is one, ends what still runs; no thread starts more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._ended = False

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end()

    def end(self) -> None:
        """Kill all of them, and refuse others from now on."""
        with self._lock:
            self._ended = True
            for pid in self._running:
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def started(self, argv: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """A program whose output can be read; what was not `reap`ed within the block is killed. ImgdistError after
        `end`."""
        with self._lock:
            if self._ended:
                raise ImgdistError(f"{argv[0]}: not started, as others have failed or been interrupted")
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
            )
            self._running.add(process.pid)
        with process:
            try:
                yield process
            finally:
                with self._lock:  # once it has been waited for, its number may be another's
                    self._running.discard(process.pid)
                if process.returncode is None:
                    process.kill()

    def reap(self, process: subprocess.Popen[bytes]) -> struct_rusage:
        """What the program has used, when it has ended; `returncode` tells how."""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._running.discard(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage
