"""The cluster that scenarios run on, one after another: its links, its image, fresh agents each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import ceil
from statistics import median

from bench.swarm_bound import Link, least_seconds
from bench.swarm_fill import Event, Fill, fill
from bench.swarm_rig import Node, Published, Rig
from imgdist.demo.image import Image
from imgdist.demo.star import Spoke, goodput_bytes_per_s


class Cluster:
    """`rig` with links of `bits_per_s`. `make_image` is called when a scenario first wants it; `say` tells the user."""

    def __init__(
        self, rig: Rig, nodes: int, bits_per_s: int, make_image: Callable[[], Image], say: Callable[[str], None]
    ) -> None:
        self.rig = rig
        self.say = say
        self.spokes: Sequence[Spoke] = rig.spokes[:nodes]
        self.others: Sequence[Spoke] = rig.spokes[nodes:]
        self.bits_per_s = bits_per_s
        self._make_image = make_image

    @staticmethod
    def others_of(nodes: int) -> int:
        """So many more that every fifth of all is one."""
        return ceil(nodes / 4)

    @cached_property
    def published(self) -> Published:
        """The image to fill."""
        self.rig.unshape()
        return self.rig.publish(self._make_image(), "app")

    def shape(self, slow: int = 0) -> None:
        """All links at their rate, those of the first `slow` nodes at half of it."""
        self.rig.shape(self.bits_per_s)
        for spoke in self.spokes[:slow]:
            spoke.shape(self.bits_per_s // 2)

    def fill(self, events: Sequence[Event] = (), slow: int = 0) -> Fill:
        """By fresh agents, from a supernode that knows none of them."""
        reference = self.published.reference
        self.rig.restart_supernode()
        self.shape(slow)
        with self.rig.agents(self.spokes) as nodes:
            return self.fill_by(nodes, reference, events)

    def fill_by(self, nodes: Sequence[Node], reference: str, events: Sequence[Event] = ()) -> Fill:
        """By these agents; told to the user."""
        done = fill(self.rig, nodes, reference, events)
        quarters = ", ".join(f"{share:.0%}" for share in (done.share_at(done.seconds * part / 4) for part in (1, 2, 3)))
        first, middle = min(done.complete_s), median(done.complete_s)
        self.say(f"first node {first:.1f} s, median {middle:.1f} s, last {done.seconds:.1f} s; by quarters {quarters}")
        return done

    def least_s(self, slow: int = 0) -> float:
        """T* with `slow` of the nodes at half the rate."""
        full = goodput_bytes_per_s(self.bits_per_s)
        rates = [full / 2] * slow + [full] * (len(self.spokes) - slow)
        links = [Link(rate, rate) for rate in rates]
        return least_seconds(self.published.wire_bytes, self.published.chunks, Link(full, full), links)
