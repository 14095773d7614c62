"""`imgdist agent` on its own: with the supernode that it starts itself, driven by the command line as its users do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgdist.demo import leftovers
from imgdist.demo.agent import IMGDIST
from imgdist.demo.ports import free_port
from imgdist.demo.processes import Process, wait_until


class LocalAgent:
    """Started and stopped as often as a test likes; what it mounted stays in between. `directory` is short, and
    `patience_s` how long it may take to start; a command may take twice that."""

    def __init__(self, directory: Path, registry: str, root: Path | None = None, patience_s: float = 30.0) -> None:
        self.root, self.run = root or directory / "root", directory / "run"
        self._directory = directory
        self._registry, self._patience_s = registry, patience_s
        self._process: Process | None = None
        self.mirror = ""
        """Where it is a registry mirror, "" for nowhere; set before the start."""
        self.environment: dict[str, str] | None = None
        self._directory.mkdir(exist_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)

    def start(self, *flags: str) -> None:
        """Returns once it serves; `flags` after those that name its directories and the registry."""
        argv = [*IMGDIST, "agent", "--root", str(self.root), "--run", str(self.run), "--plain-http", self._registry]
        argv += ["--mirror-listen", self.mirror]
        argv += ["--peer-listen", f"127.0.0.1:{free_port()}"]  # used only with configured supernodes
        self._process = Process(
            "agent", [*argv, *flags], self._directory / "agent.log", env=self.environment, stop_timeout_s=60
        )
        self._process.wait_for_line("ready", self._patience_s)

    def stop(self) -> int:
        """SIGTERM, as systemd does it; the exit code."""
        assert self._process is not None
        return self._process.stop()

    def interrupt(self) -> int:
        """Ctrl-C: SIGINT to its whole process group; the exit code."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)
        wait_until(lambda: self._process is not None and not self._process.running, "agent ended", 60)
        return self._process.stop()

    def kill(self) -> None:
        """SIGKILL for holder, supernode, view and agent, the holder first so that nothing is started again."""
        assert self._process is not None
        for pid in (self._process.pid, *self.children()):
            with contextlib.suppress(ProcessLookupError):  # some end by themselves when the holder is gone
                os.kill(pid, signal.SIGKILL)
        self._process.stop()

    def kill_child(self, role: str) -> None:
        """SIGKILL for one of them: "supernode", "view" or "agent"."""
        os.kill(self.child(role), signal.SIGKILL)

    def child(self, role: str) -> int:
        """Pid of one of them: "supernode", "view" or "agent"."""
        words = {"supernode": b"\0supernode\0", "view": b"\0fuse.main\0", "agent": b"\0agent.main\0"}
        (pid,) = (pid for pid in self.children() if words[role] in Path(f"/proc/{pid}/cmdline").read_bytes())
        return pid

    @contextmanager
    def frozen(self, role: str) -> Iterator[None]:
        """One of them, and what it has started, does nothing within the block and goes on after it."""
        family = leftovers.descendants(self.child(role))
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                os.kill(pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """The holder's."""
        assert self._process is not None
        return self._process.pid

    def children(self) -> list[int]:
        """Process ids of supernode, view and agent."""
        holder = self.pid
        return [int(pid) for pid in Path(f"/proc/{holder}/task/{holder}/children").read_text().split()]

    def imgdist(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command against this agent."""
        argv = [*IMGDIST, *words, "--run", str(self.run)]
        timeout_s = 2 * self._patience_s
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)

    def done(self, *words: str) -> None:
        """Run a command that must succeed and say nothing."""
        ran = self.imgdist(*words)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")

    def refused(self, *words: str) -> tuple[int, str]:
        """Run a command that must fail with one line; exit code and line."""
        ran = self.imgdist(*words)
        assert ran.stdout == "" and ran.stderr.count("\n") == 1, ran.stderr
        return ran.returncode, ran.stderr.strip()

    def json(self, command: str) -> Any:
        """The one document that `imgdist COMMAND --json` prints."""
        ran = self.imgdist(command, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def states(self) -> dict[str, str]:
        """State of each layer, by its digest."""
        return {layer["digest"]: layer["state"] for layer in self.json("layers")}

    def log(self) -> str:
        """What it has written, all its runs together."""
        log = self._directory / "agent.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def mounts(self) -> list[Path]:
        """What is mounted below its directories, the newest first."""
        return leftovers.mounts_below(self._directory)

    def loops(self) -> list[str]:
        """Loop devices that show a file of its own."""
        return leftovers.loops_below(self._directory)

    def close(self) -> None:
        """Stop it, and take away what rightly outlives it."""
        if self._process is not None:
            self._process.stop()
        leftovers.clear(self._directory, leftovers.processes_with(str(self.run)))
