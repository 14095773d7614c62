"""The whole of imgdist on this machine as its users start it: registry, supernode, agent, containerd."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from parts import require, require_lazy_layers
from rig import logs
from rig.containerds import Containerd, Setting, containerd
from rig.images import Workshop

from imgdist.api import JsonApi
from imgdist.demo import leftovers
from imgdist.demo.agent import IMGDIST, Supernode
from imgdist.demo.ports import free_port
from imgdist.demo.processes import Process, wait_until
from imgdist.demo.registry import registry

# The fill begins at once and the switch follows it: what takes minutes of idling elsewhere is not what is tested here.
_QUICK = ("fill.quiet_s=0", "switch.idle_s=0.2")
_SETTLED = {"switched", "complete", "plain"}
_SETTLE_S = 60.0


class Node:
    """`imgdist agent`, started and stopped as often as a test likes; what it mounted stays in between.

    `directory` is short: unix sockets live in `directory`/run.
    """

    def __init__(self, directory: Path, supernodes: Sequence[str], settings: Sequence[str] = _QUICK) -> None:
        self.root, self.run = directory / "root", directory / "run"
        self.snapshotter = self.run / "snapshotter.sock"
        self._directory = directory
        self._argv = [*IMGDIST, "agent", "--root", str(self.root), "--run", str(self.run)]
        self._argv += ["--mirror-listen", "", "--peer-listen", f"127.0.0.1:{free_port()}"]
        self._argv += [word for url in supernodes for word in ("--supernode", url)]
        self._argv += [word for setting in settings for word in ("--set", setting)]
        self._process: Process | None = None
        self.root.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Returns once it serves."""
        self._process = Process("agent", self._argv, self._directory / "agent.log", stop_timeout_s=60)
        self._process.wait_for_line("ready")

    def stop(self) -> int:
        """SIGTERM, as systemd does it; the exit code."""
        assert self._process is not None
        return self._process.stop()

    def kill(self) -> None:
        """SIGKILL for holder, view and agent, the holder first so that nothing is started again."""
        assert self._process is not None
        for pid in (self._process.pid, *self._children()):
            os.kill(pid, signal.SIGKILL)
        self._process.stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing of it does anything within the block, while its sockets take connections."""
        assert self._process is not None
        family = [self._process.pid, *self._children()]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                with suppress(ProcessLookupError):  # a test may have killed it
                    os.kill(pid, signal.SIGCONT)

    def _children(self) -> list[int]:
        assert self._process is not None
        holder = self._process.pid
        children = [
            int(child)
            for task in Path(f"/proc/{holder}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        assert len(children) >= 2, f"expected view and agent below the holder {holder}, seen {children}"
        return children

    def layers(self) -> list[dict[str, Any]]:
        """What `imgdist layers --json` prints."""
        found: list[dict[str, Any]] = JsonApi(f"unix://{self.run}/api.sock", "agent").get("/v1/layers")
        return found

    def wait_settled(self, count: int) -> list[dict[str, Any]]:
        """Until at least `count` layers are known and none is on its way; they."""
        wait_until(lambda: self._settled(count), f"{count} layers settled", _SETTLE_S)
        return self.layers()

    def _settled(self, count: int) -> bool:
        layers = self.layers()
        failed = [layer for layer in layers if layer["state"] == "failed"]
        assert not failed, f"layers failed: {failed}"
        return len(layers) >= count and all(layer["state"] in _SETTLED for layer in layers)

    def log(self) -> str:
        return (self._directory / "agent.log").read_text(errors="replace")

    def close(self) -> None:
        """Stop it, and take away what rightly outlives it."""
        if self._process is not None:
            self._process.stop()
        leftovers.clear(self._directory, leftovers.processes_with(str(self.run)))


class Stack:
    """Everything, each part startable and stoppable. Made by `stack()`."""

    def __init__(self, directory: Path, parts: ExitStack, settings: Sequence[str]) -> None:
        self._directory, self._parts = directory, parts
        self._registry_address = f"127.0.0.1:{free_port()}"
        self._supernode_address = f"127.0.0.1:{free_port()}"
        self.registry = parts.enter_context(ExitStack())
        self.start_registry()
        self.workshop = Workshop(directory / "images", self._registry_address)
        self.supernode = self.start_supernode()
        self.node = Node(directory / "a", [self.supernode.url], settings)
        parts.callback(self.node.close)
        self.node.start()

    def start_registry(self) -> None:
        self.registry.enter_context(registry(self._directory / "registry", self._registry_address))

    def start_supernode(self) -> Supernode:
        plain = [self._registry_address]
        self.supernode = Supernode(self._directory / "s", self._supernode_address, plain_http=plain)
        return self._parts.enter_context(self.supernode)

    def go_offline(self) -> None:
        """From here on the node has only itself."""
        self.registry.close()
        self.supernode.stop()

    def containerd(self, setting: Setting, snapshotter: Path | None = None, place: Path | None = None) -> Containerd:
        """A containerd in `place` that uses this agent, or what listens on the socket `snapshotter`; ends before it."""
        if not (self._directory / "images/pause").exists():
            self.workshop.pause()
        pause = f"{self._registry_address}/pause:1"
        place = place or self._directory / f"c{setting.version}"
        return self._parts.enter_context(containerd(place, setting, snapshotter or self.node.snapshotter, pause))


@contextmanager
def stack(directory: Path, settings: Sequence[str] = _QUICK) -> Iterator[Stack]:
    """A stack with its state in `directory` (short), its agent set as said; skips (in CI: fails) where a part is
    missing. What is mounted at `directory`/a/root before is the agent's disk."""
    require_lazy_layers()
    require(Path("/bin/busybox").exists(), "busybox-static")
    with logs.shown(directory), ExitStack() as parts:
        yield Stack(directory, parts, settings)
