"""What the swarm benchmark measures: a star of namespaces with a registry and a supernode in one and an agent in each
of the others, every link shaped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.node_processes import NodeProcesses
from imgdist.demo import leftovers
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.image import Image
from imgdist.demo.interrupts import shielded
from imgdist.demo.push import push
from imgdist.demo.registry import registry
from imgdist.demo.star import Spoke, Star
from supernode.store.layout import INDEX, ROW, TABLE, Layout

REGISTRY_PORT, SUPERNODE_PORT, PEER_PORT = 5000, 7600, 7651


@dataclass(frozen=True, slots=True)
class Published:
    """An image that the supernode has converted: what every node needs of it on the wire, what the registry has, and
    what the registry sent until it was converted."""

    reference: str
    manifest_digest: str
    wire_bytes: int
    chunks: int
    registry_bytes: int
    origin_bytes: int


@dataclass(frozen=True, slots=True)
class Node:
    """A running agent in its namespace, and where it shows images."""

    spoke: Spoke
    agent: Agent
    processes: NodeProcesses

    @property
    def tree(self) -> Path:
        return self.agent.directory / "m"


class Rig:
    """A context manager. `spokes` are the nodes' namespaces; links are unshaped until `shape`.

    `apart`: the supernode has a namespace and a link of its own, so that what it reads of the registry crosses both.
    """

    def __init__(self, nodes: int, *, apart: bool = False) -> None:
        self._star = Star(nodes + apart)
        self._agents = 0
        self._undo = ExitStack()
        self.datacenter, self.spokes = self._star.datacenter, self._star.nodes[:nodes]
        self.seat = self._star.nodes[nodes] if apart else self._star.datacenter
        self.directory = self._star.directory

    def __enter__(self) -> Rig:
        with ExitStack() as undo:
            undo.enter_context(self._star)
            host, inside = self.datacenter.address, self.datacenter.inside
            place = self.directory / "registry"
            self.registry = undo.enter_context(registry(place, f"{host}:{REGISTRY_PORT}", inside=inside))
            [self._registry_pid] = leftovers.processes_with("serve", str(place / "registry.yml"))
            undo.callback(self._stop_supernode)
            self.start_supernode()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with shielded():
            self._undo.close()

    @property
    def namespaces(self) -> list[str]:
        """All in which something of the rig runs."""
        return [spoke.namespace for spoke in self._linked]

    @property
    def can_delay(self) -> bool:
        """Whether links can be given a delay (netem)."""
        return self._star.can_delay

    def start_supernode(self) -> None:
        """Start it, or after `kill_supernode` another one on the same root; returns when it serves."""
        listen = f"{self.seat.address}:{SUPERNODE_PORT}"
        root, inside = self.directory / "supernode", self.seat.inside
        self.supernode = Supernode(root, listen, plain_http=[self.registry], inside=inside)
        self.supernode.__enter__()

    def restart_supernode(self) -> None:
        """Another one on the same root: it knows nothing of the agents that the last one had."""
        self.supernode.stop()
        self.start_supernode()

    def renew_supernode(self) -> None:
        """Another one that has nothing converted."""
        self.supernode.stop()
        shutil.rmtree(self.supernode.root)
        self.start_supernode()

    def kill_supernode(self) -> None:
        """SIGKILL, its chunk server with it."""
        leftovers.kill_with_children(self.supernode.pid)
        self.supernode.stop()

    def _stop_supernode(self) -> None:
        if hasattr(self, "supernode"):
            self.supernode.stop()

    def publish(self, image: Image, name: str, tag: str = "bench") -> Published:
        """Push the image and have the supernode convert it."""
        reference, manifest_digest = push(image, self.registry, name, tag, mark=tag)
        before = self.registry_wrote_bytes()
        self.supernode.preheat(reference)
        packs = [Layout(self.supernode.root).link(layer.digest) for layer in image.layers]
        sizes = [length for pack in packs for length in _encoded_sizes(pack)]
        return Published(
            reference=reference,
            manifest_digest=manifest_digest,
            wire_bytes=sum(sizes) + sum((pack / INDEX).stat().st_size for pack in packs),
            chunks=len(sizes),
            registry_bytes=image.layers_bytes + image.config.size_bytes + image.manifest.size_bytes,
            origin_bytes=self.registry_wrote_bytes() - before,
        )

    def registry_wrote_bytes(self) -> int:
        """What the registry has written so far, to sockets and disk (proc(5): wchar of /proc/PID/io counts both)."""
        lines = Path(f"/proc/{self._registry_pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))

    def shape(self, bits_per_s: int) -> None:
        """Every link, the datacenter's as well, gets this rate each way."""
        for spoke in self._linked:
            spoke.shape(bits_per_s)

    def unshape(self) -> None:
        for spoke in self._linked:
            spoke.unshape()

    @property
    def _linked(self) -> Sequence[Spoke]:
        return (self._star.datacenter, *self._star.nodes)

    @contextmanager
    def agents(
        self, spokes: Sequence[Spoke], settings: Sequence[str] = (), mirror_listen: str = ""
    ) -> Iterator[list[Node]]:
        """A fresh agent in each of these namespaces, all started, and stopped, at once; `mirror_listen` as Agent's."""
        settings = ["stop_timeout_s=0", *settings]
        agents = [self._agent(spoke, settings, mirror_listen) for spoke in spokes]
        with ThreadPoolExecutor(len(agents)) as pool:
            try:
                for agent in agents:
                    agent.__enter__()
                yield [Node(spoke, agent, NodeProcesses(agent)) for spoke, agent in zip(spokes, agents, strict=True)]
            finally:
                with shielded():
                    list(pool.map(Agent.stop, agents))

    def _agent(self, spoke: Spoke, settings: Sequence[str], mirror_listen: str) -> Agent:
        self._agents += 1
        return Agent(
            self.directory / f"a{self._agents}",
            [self.supernode.url],
            inside=spoke.inside,
            peer_listen=f"{spoke.address}:{PEER_PORT}",
            mirror_listen=mirror_listen,
            settings=settings,
        )


def _encoded_sizes(pack: Path) -> list[int]:
    """Bytes of every chunk of a pack as a supernode sends it, without frames; chunks of zeros are not sent."""
    return [length for _, length, _ in ROW.iter_unpack((pack / TABLE).read_bytes()) if length]
