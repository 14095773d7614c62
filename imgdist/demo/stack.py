"""The whole throw-away stack: registry and supernode behind a shaped link, plain and lazy containerd in front of it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from imgdist.demo import leftovers
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.containerd import Containerd, Install
from imgdist.demo.image import Image
from imgdist.demo.interrupts import shielded
from imgdist.demo.link import Link
from imgdist.demo.processes import Process, wait_until
from imgdist.demo.push import push
from imgdist.demo.registry import registry
from imgdist.demo.start import Start, cold_start
from imgdist.errors import TemporaryError

REPOSITORY = "demo/app"
REGISTRY_PORT = 5000
SUPERNODE_PORT = 7600
# An agent tells a trace when nothing new was touched for 2 s; images of small layers only never have one.
TRACE_TIMEOUT_S = 15.0


Node = tuple[Agent, Containerd]
"""An agent, and the containerd that uses it."""


@dataclass(frozen=True)
class Pushed:
    """An image in a registry that the stack's nodes and supernode reach."""

    reference: str
    manifest_digest: str


class Stack:
    """A context manager; everything is undone at the end, whatever happened in between.

    `rtt_ms` > 0 puts a relay that adds this round-trip time before registry and supernode.
    """

    def __init__(self, install: Install, *, bits_per_s: int, rtt_ms: float = 0.0) -> None:
        self.install = install
        self._bits_per_s = bits_per_s
        self._rtt_ms = rtt_ms
        self._nodes = 0
        self._undo = ExitStack()

    def __enter__(self) -> Stack:
        with ExitStack() as undo:
            # Not /tmp, which may be memory: dropping the page cache would not make that cold.
            self.directory = Path(tempfile.mkdtemp(prefix="imgdist-", dir="/var/tmp"))
            undo.callback(leftovers.remove, self.directory)  # an interrupt may have cut a part's own clean-up short
            self.link = undo.enter_context(Link())
            public, inside = self.link.far, self.link.inside
            own = "127.0.0.1" if self._rtt_ms else public
            if self._rtt_ms:
                undo.enter_context(self._relay(public, own))
            self.registry = undo.enter_context(
                registry(
                    self.directory / "registry",
                    f"{own}:{REGISTRY_PORT}",
                    inside=inside,
                    reached_at=f"{public}:{REGISTRY_PORT}",
                )
            )
            self.supernode = undo.enter_context(
                Supernode(
                    self.directory / "supernode",
                    f"{own}:{SUPERNODE_PORT}",
                    plain_http=[self.registry],
                    inside=inside,
                    advertise=public if self._rtt_ms else None,
                )
            )
            self.link.shape(self._bits_per_s)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shielded():
            self._undo.close()

    def push(self, image: Image, tag: str) -> Pushed:
        """Upload at full speed what the registry lacks. Another tag is another manifest (and trace), same layers."""
        self.link.unshape()
        try:
            return Pushed(*push(image, self.registry, REPOSITORY, tag, mark=tag))
        finally:
            self.link.shape(self._bits_per_s)

    def preheat(self, pushed: Pushed) -> float:
        """Have the supernode fetch and convert the image; seconds."""
        started = time.monotonic()
        self.supernode.preheat(pushed.reference)
        return time.monotonic() - started

    def plain(self, what: str, pushed: Pushed, argv: Sequence[str], *, linger_s: float | None = None) -> Start:
        """An ordinary pull and start on a fresh containerd, measured."""
        with Containerd(self.install, self._fresh("plain"), plain_http=[self.registry]) as containerd:
            return self._start(what, containerd, pushed, argv, linger_s=linger_s)

    def local(self, what: str, pushed: Pushed, argv: Sequence[str], rounds: int) -> list[Start]:
        """Starts from local disk: pulled by plain containerd beforehand, page cache cold."""
        with Containerd(self.install, self._fresh("local"), plain_http=[self.registry]) as containerd:
            containerd.pull(pushed.reference)
            return [self._start(what, containerd, pushed, argv, pull=False) for _ in range(rounds)]

    def lazy(
        self,
        what: str,
        pushed: Pushed,
        argv: Sequence[str],
        *,
        filled: bool = False,
        traced: bool = False,
        linger_s: float | None = None,
        settings: Sequence[str] = (),
    ) -> Start:
        """The same on a fresh agent and a fresh containerd; `filled`: see `start_on`.

        `traced`: afterwards wait until the supernode knows which chunks this start touched; `Start.traced` says so.
        """
        with self.node(settings) as node:
            start = self.start_on(node, what, pushed, argv, filled=filled, linger_s=linger_s)
            if traced:
                start.traced = self._wait_for_trace(pushed)
            return start

    def start_on(
        self,
        node: Node,
        what: str,
        pushed: Pushed,
        argv: Sequence[str],
        *,
        filled: bool = False,
        linger_s: float | None = None,
    ) -> Start:
        """The same on a node as it is. `filled`: measure until the background fill has ended."""
        agent, containerd = node
        wait_filled = agent.wait_complete if filled else None
        fetched, copied = agent.chunk_bytes("supernode"), agent.chunk_bytes("dedup")
        start = self._start(what, containerd, pushed, argv, linger_s=linger_s, wait_filled=wait_filled)
        start.fetched_bytes = agent.chunk_bytes("supernode") - fetched
        start.copied_bytes = agent.chunk_bytes("dedup") - copied
        return start

    def _wait_for_trace(self, pushed: Pushed) -> bool:
        digest = pushed.manifest_digest
        try:
            wait_until(lambda: self.supernode.trace(digest) is not None, f"trace of {digest}", TRACE_TIMEOUT_S)
        except TemporaryError:
            return False
        return True

    @contextmanager
    def node(self, settings: Sequence[str] = ()) -> Iterator[Node]:
        """A fresh agent and a fresh containerd that uses it."""
        directory = self._fresh("lazy")
        # On SIGTERM the agent completes layers in use; nobody will use these again.
        settings = ["stop_timeout_s=0", *settings]
        with (
            Agent(directory / "a", [self.supernode.url], settings=settings) as agent,
            Containerd(
                self.install,
                directory / "c",
                snapshotter=agent.snapshotter,
                exports_root=agent.root,
                plain_http=[self.registry],
            ) as containerd,
        ):
            yield agent, containerd

    def _relay(self, public: str, own: str) -> Process:
        ports = (REGISTRY_PORT, SUPERNODE_PORT, SUPERNODE_PORT + 1)
        routes = [f"{public}:{port}={own}:{port}" for port in ports]
        argv = [*self.link.inside, sys.executable, "-m", "imgdist.demo.relay", str(self._rtt_ms), *routes]
        relay = Process("relay", argv, self.directory / "relay.log")
        try:
            relay.wait_for_line("ready")
        except BaseException:
            relay.stop()
            raise
        return relay

    def _fresh(self, name: str) -> Path:
        self._nodes += 1
        return self.directory / f"{name}{self._nodes}"

    def _start(
        self,
        what: str,
        containerd: Containerd,
        pushed: Pushed,
        argv: Sequence[str],
        *,
        pull: bool = True,
        linger_s: float | None = None,
        wait_filled: Callable[[], None] | None = None,
    ) -> Start:
        """`cold_start` with both sides warm."""
        return cold_start(
            what,
            containerd,
            self.link.received_bytes,
            pushed.reference,
            argv,
            warm=self._warm(),
            pull=pull,
            linger_s=linger_s,
            wait_filled=wait_filled,
        )

    def _warm(self) -> list[Path]:
        """What a node and a datacenter in use have in memory, on both sides: programs, the registry, the packs."""
        programs = [*self.install.programs, *(Path(found) for name in ("runc",) if (found := shutil.which(name)))]
        return [*programs, self.directory / "registry", self.supernode.root]
