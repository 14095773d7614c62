"""Child processes of the throw-away stack: a log file each, a wait for readiness, a stop that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from imgdist.errors import ImgdistError, TemporaryError

# Fast enough not to blur a figure, slow enough not to cost one: readiness of the parts takes 20-500 ms.
POLL_S = 0.01


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Return as soon as `condition()` holds. Raises TemporaryError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TemporaryError(f"{what}: expected within {timeout_s:g} s, not seen")
        time.sleep(POLL_S)


def command(*argv: str | os.PathLike[str], timeout_s: float = 600.0, env: Mapping[str, str] | None = None) -> str:
    """Run a short command to its end; its stdout. Raises ImgdistError with the last lines that it wrote."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, env=env, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ImgdistError(f"{argv[0]}: no such command; scripts/parts demo installs it") from None
    except subprocess.TimeoutExpired:
        raise TemporaryError(f"{' '.join(map(str, argv))}: not done after {timeout_s:g} s") from None
    if done.returncode:
        last = "\n".join((done.stderr + done.stdout).strip().splitlines()[-8:])
        raise ImgdistError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {last}")
    return done.stdout


class Process:
    """One child in a process group of its own (Ctrl-C reaches only us), output appended to `log`.

    A context manager; `stop()` ends the whole group. `argv[0]` is looked up in PATH.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.name = name
        self.log = log
        self._stop_timeout_s = stop_timeout_s
        self._stopped = False
        self._log_start = log.stat().st_size if log.exists() else 0
        try:
            with log.open("ab") as output:
                self._child = subprocess.Popen(
                    [os.fspath(part) for part in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=None if env is None else dict(env),
                    start_new_session=True,
                )
        except FileNotFoundError:
            raise ImgdistError(f"{name}: no command {argv[0]}; scripts/parts demo installs it") from None

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def written(self) -> str:
        """What this process has written so far."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait for readiness. Raises ImgdistError with the log's end if the process dies first or time is up."""

        def holds() -> bool:
            if not self.running:
                raise ImgdistError(f"{self.name}: exit {self._child.returncode} before it was ready: {self._tail()}")
            return condition()

        try:
            wait_until(holds, f"{self.name} ready", timeout_s)
        except TemporaryError as error:
            raise TemporaryError(f"{error}; its log {self.log} ends: {self._tail()}") from None

    def wait_for_line(self, line: str, timeout_s: float = 30.0) -> None:
        """Wait until the process has written exactly this line."""
        self.wait_until(lambda: line in self.written().splitlines(), timeout_s)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End the process, its group with it; SIGKILL after the time-out. Its exit code. Again: does nothing."""
        if not self._stopped:
            self._stopped = True
            if self.running:
                self._child.send_signal(signal_number)
                try:
                    self._child.wait(self._stop_timeout_s)
                except subprocess.TimeoutExpired:
                    self._kill_group()
            # Children that outlived their parent are still in the group.
            self._kill_group()
        return self._child.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _tail(self) -> str:
        return " | ".join(self.written().strip().splitlines()[-6:]) or "(nothing written)"

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Daemon:
    """What runs as one process, and is ready in its `with` block. A subclass makes `_process`, may say when it is ready
    (`_wait_ready`), and clears up what outlives it (`stop`)."""

    _process: Process

    def __enter__(self) -> Self:
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        return self._process.log

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        self._process.stop()

    def _wait_ready(self) -> None:
        self._process.wait_for_line("ready")
