"""One fill of a swarm, measured: every node is told to mount the image at the same moment, and nobody reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from blake3 import blake3

from bench.machine_time import MachineTime
from bench.swarm_rig import Node, Rig
from fuse.present import PresentMap
from imgdist.demo.star import Traffic
from imgdist.errors import ImgdistError, TemporaryError
from imgdist.pack import BLOCK
from imgdist.pack.index import Index

_POLL_S = 0.1
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something to do once, beside the fill, when the nodes together have `share` of the image."""

    share: float
    act: Callable[[], None]


@dataclass(slots=True)
class Fill:
    """What happened. Seconds since the nodes were told (`told_at` on the monotonic clock); CPU time and memory of each
    node's processes by role; shares of all cores in use, and in use by
    processes that are not the rig's; `samples`: (seconds, share of the image each node has).
    """

    told_at: float
    mounted_s: list[float]
    complete_s: list[float]
    nodes: list[Traffic]
    datacenter: Traffic
    registry_bytes: int
    busy: float
    others: float
    cpu_s: list[dict[str, float]]
    peak_rss_mib: list[dict[str, float]]
    wrong_bytes: int = 0
    samples: list[tuple[float, list[float]]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Until the last node was complete."""
        return max(self.complete_s)

    def share_at(self, seconds: float) -> float:
        """What the nodes together had by then."""
        return max((sum(shares) / len(shares) for at, shares in self.samples if at <= seconds), default=0.0)


class _Progress:
    """What a node has of its layers, by the present maps that its agent keeps: looking costs the agent nothing."""

    def __init__(self, node: Node) -> None:
        self._packs = [node.agent.root / "packs" / layer["pack_id"] for layer in node.agent.layers()]
        self._maps = [PresentMap.open(pack / "present") for pack in self._packs]
        self._blocks = sum(one.blocks for one in self._maps)

    def share(self) -> float:
        return sum(one.count() for one in self._maps) / self._blocks

    def is_complete(self) -> bool:
        return all(one.all_present() for one in self._maps)

    def wrong_bytes(self) -> int:
        """Bytes of the node's images that are not what the index says, and of blocks that are missing."""
        return sum(map(_wrong_bytes, self._packs))

    def close(self) -> None:
        for one in self._maps:
            one.close()


def fill(rig: Rig, nodes: Sequence[Node], reference: str, events: Sequence[Event] = ()) -> Fill:
    """Mount `reference` everywhere at once and watch until every node has all of it; then hash every image.

    Raises TemporaryError naming the shares if it takes ten minutes, and what mounting raises.
    """
    traffic = [node.spoke.traffic() for node in nodes]
    datacenter, cpu = rig.datacenter.traffic(), [node.processes.cpu_s() for node in nodes]
    registry, machine = rig.registry_wrote_bytes(), MachineTime(rig.namespaces)
    with ThreadPoolExecutor(len(nodes)) as pool:
        watch = _Watch(nodes, events)
        mounting = [pool.submit(watch.mount, number, reference) for number in range(len(nodes))]
        watch.run()
        for one in mounting:
            one.result()
        result = Fill(
            told_at=watch.told_at,
            mounted_s=watch.mounted_s,
            complete_s=watch.complete_s,
            nodes=[node.spoke.traffic() - before for node, before in zip(nodes, traffic, strict=True)],
            datacenter=rig.datacenter.traffic() - datacenter,
            registry_bytes=rig.registry_wrote_bytes() - registry,
            busy=machine.busy_share(),
            others=machine.others_share(),
            cpu_s=[
                {role: spent - before[role] for role, spent in node.processes.cpu_s().items()}
                for node, before in zip(nodes, cpu, strict=True)
            ],
            peak_rss_mib=[node.processes.peak_rss_mib() for node in nodes],
            samples=watch.samples,
        )
        result.wrong_bytes = sum(pool.map(_Progress.wrong_bytes, watch.progress.values()))
    watch.close()
    return result


class _Watch:
    """Looks at all nodes in turn; mounting runs in threads beside it."""

    def __init__(self, nodes: Sequence[Node], events: Sequence[Event]) -> None:
        self._nodes = nodes
        self._events = sorted(events, key=lambda event: event.share)
        self._acting: list[Thread] = []
        self._errors: list[BaseException] = []
        self.told_at = time.monotonic()
        self.progress: dict[int, _Progress] = {}
        self.mounted_s = [0.0] * len(nodes)
        self.complete_s = [0.0] * len(nodes)
        self.samples: list[tuple[float, list[float]]] = []

    def mount(self, number: int, reference: str) -> None:
        node = self._nodes[number]
        try:
            node.agent.mount(reference, node.tree)
            self.mounted_s[number] = time.monotonic() - self.told_at
            self.progress[number] = _Progress(node)
        except BaseException as error:
            self._errors.append(error)
            raise

    def run(self) -> None:
        """Return when all are complete. Raises what an event raised, or the time-out."""
        while not all(self.complete_s):
            time.sleep(_POLL_S)
            now = time.monotonic() - self.told_at
            progress = dict(self.progress)
            for number, one in progress.items():
                if not self.complete_s[number] and one.is_complete():
                    self.complete_s[number] = now
            shares = [progress[n].share() if n in progress else 0.0 for n in range(len(self._nodes))]
            self.samples.append((now, shares))
            self._act(sum(shares) / len(shares))
            if self._errors:
                raise self._errors[0]
            if now > _TIMEOUT_S:
                told = ", ".join(f"{share:.3f}" for share in shares)
                raise TemporaryError(f"fill: not done after {_TIMEOUT_S:.0f} s; shares of the image: {told}")
        for thread in self._acting:
            thread.join()

    def _act(self, share: float) -> None:
        while self._events and share >= self._events[0].share:
            thread = Thread(target=self._guarded, args=(self._events.pop(0).act,), name="event")
            thread.start()
            self._acting.append(thread)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (ImgdistError, OSError) as error:
            self._errors.append(error)

    def close(self) -> None:
        for one in self.progress.values():
            one.close()


def _wrong_bytes(pack: Path) -> int:
    index = Index.load((pack / "index").read_bytes())
    wrong = 0
    with (pack / "image").open("rb", buffering=0) as image:
        if image.read(BLOCK) != index.block0():
            wrong += BLOCK
        for chunk in range(index.chunk_count):
            image.seek(index.start(chunk))
            if blake3(image.read(index.size(chunk))).digest() != index.digest(chunk):
                wrong += index.size(chunk)
    return wrong
