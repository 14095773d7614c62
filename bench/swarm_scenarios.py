"""What may happen while a swarm fills: scenarios, each measured once and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from statistics import median

from bench.report import Row
from bench.swarm_bound import Link, least_seconds
from bench.swarm_fill import Event, Fill, fill
from bench.swarm_rig import Rig
from imgdist.api import JsonApi
from imgdist.demo.image import Image
from imgdist.demo.processes import command, wait_until
from imgdist.demo.star import Spoke, goodput_bytes_per_s

PLAIN_GOAL, DISTURBED_GOAL = 1.3, 1.5
ORIGIN_GOAL, SUPERNODE_GOAL = 1.01, 2.0
MEMBERS_BACK_GOAL_S = 10.0
_KILLED_AT = 0.4
_SOON_S, _LATE_S = 1.0, 8.0


class Swarm:
    """The rig with the image published: what scenarios run on, one after another. `say` tells the user."""

    def __init__(self, rig: Rig, image: Image, nodes: int, bits_per_s: int, say: Callable[[str], None]) -> None:
        self.rig = rig
        self.say = say
        self.spokes: Sequence[Spoke] = rig.spokes[:nodes]
        self.others: Sequence[Spoke] = rig.spokes[nodes:]
        self.bits_per_s = bits_per_s
        self.published = rig.publish(image, "app")

    @staticmethod
    def hostile_nodes(nodes: int) -> int:
        """So many that every fifth of all is one."""
        return ceil(nodes / 4)

    def fill(self, events: Sequence[Event] = ()) -> Fill:
        """Fresh agents, a supernode that knows none of them, links as they were shaped."""
        self.rig.restart_supernode()
        with self.rig.agents(self.spokes) as nodes:
            done = fill(self.rig, nodes, self.published.reference, events)
        halves = ", ".join(f"{share:.0%}" for share in (done.share_at(done.seconds * part / 4) for part in (1, 2, 3)))
        first, middle = min(done.complete_s), median(done.complete_s)
        self.say(f"first node {first:.1f} s, median {middle:.1f} s, last {done.seconds:.1f} s; by quarters {halves}")
        return done

    def least_s(self, slow: int = 0) -> float:
        """T* with `slow` of the nodes at half the rate."""
        full = goodput_bytes_per_s(self.bits_per_s)
        rates = [full / 2] * slow + [full] * (len(self.spokes) - slow)
        links = [Link(rate, rate) for rate in rates]
        return least_seconds(self.published.wire_bytes, self.published.chunks, Link(full, full), links)


def _plain(swarm: Swarm) -> list[Row]:
    swarm.rig.shape(swarm.bits_per_s)
    done = swarm.fill()
    published = swarm.published
    origin = published.origin_bytes + done.registry_bytes
    crossed_gb = sum(node.received + node.sent for node in done.nodes) / 1e9
    cpu = {role: sum(node[role] for node in done.cpu_s) for role in ("agent", "view")}
    return [
        *_judged("plain", swarm, done, PLAIN_GOAL),
        Row("plain: from the registry / image", origin / published.registry_bytes, ORIGIN_GOAL),
        Row("plain: last node mounted", max(done.mounted_s), unit="s"),
        Row("plain: machine busy", 100 * done.busy, unit="%"),
        *(
            Row(f"plain: {role} CPU, a GB received or sent", spent / crossed_gb, unit="s/GB")
            for role, spent in cpu.items()
        ),
        Row("plain: RSS of a node, largest", max(sum(node.values()) for node in done.peak_rss_mib), unit="MiB"),
        Row("plain: RSS of its agent process, largest", max(node["agent"] for node in done.peak_rss_mib), unit="MiB"),
    ]


def _half_speed(swarm: Swarm) -> list[Row]:
    slow = ceil(len(swarm.spokes) / 5)
    swarm.rig.shape(swarm.bits_per_s)
    for spoke in swarm.spokes[:slow]:
        spoke.shape(swarm.bits_per_s // 2)
    done = swarm.fill()
    fast = max(done.complete_s[slow:])
    return [
        *_judged("half-speed", swarm, done, DISTURBED_GOAL, slow),
        Row("half-speed: nodes at full speed, T / T* of a swarm without the slow", fast / swarm.least_s()),
    ]


def _seed_killed(swarm: Swarm) -> list[Row]:
    swarm.rig.shape(swarm.bits_per_s)
    return _judged("seed-killed", swarm, swarm.fill([_Outage(swarm.rig, _SOON_S).event]), DISTURBED_GOAL)


def _tracker_killed(swarm: Swarm) -> list[Row]:
    swarm.rig.shape(swarm.bits_per_s)
    outage = _Outage(swarm.rig, _LATE_S, members=len(swarm.spokes))
    done = swarm.fill([outage.event])
    return [
        *_judged("tracker-killed", swarm, done, None),
        Row("tracker-killed: members back after", outage.members_back_s, MEMBERS_BACK_GOAL_S, "s"),
        Row(f"tracker-killed: filled in {_LATE_S:g} s without supernode", 100 * outage.filled_share(done), unit="%"),
    ]


def _baseline(swarm: Swarm) -> list[Row]:
    """Nothing of ours: every node copies the image from the registry at once."""
    swarm.rig.shape(swarm.bits_per_s)

    def copy(number: int) -> None:
        target = swarm.rig.directory / f"copy{number}"
        source = f"docker://{swarm.published.reference}"
        skopeo = ("skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", source, f"dir:{target}")
        command(*swarm.spokes[number].inside, *skopeo)

    before, started = swarm.rig.registry_wrote_bytes(), time.monotonic()
    with ThreadPoolExecutor(len(swarm.spokes)) as pool:
        list(pool.map(copy, range(len(swarm.spokes))))
    took, size = time.monotonic() - started, swarm.published.registry_bytes
    full = goodput_bytes_per_s(swarm.bits_per_s)
    link = Link(full, full)
    least = least_seconds(size, swarm.published.chunks, link, [link] * len(swarm.spokes))
    return [
        Row("baseline: T / T* (of the compressed layers)", took / least),
        Row("baseline: from the registry / image", (swarm.rig.registry_wrote_bytes() - before) / size),
    ]


class _Outage:
    """The supernode is killed and comes back on the same root after `down_s`."""

    def __init__(self, rig: Rig, down_s: float, members: int = 0) -> None:
        self._rig = rig
        self._down_s = down_s
        self._members = members
        self._span = (0.0, 0.0)
        self.members_back_s = 0.0
        self.event = Event(_KILLED_AT, self._act)

    def filled_share(self, done: Fill) -> float:
        """What the nodes got of the image meanwhile."""
        down, up = (at - done.told_at for at in self._span)
        return done.share_at(up) - done.share_at(down)

    def _act(self) -> None:
        down = time.monotonic()
        self._rig.kill_supernode()
        time.sleep(self._down_s)
        self._span = (down, time.monotonic())
        self._rig.start_supernode()
        up = time.monotonic()
        if self._members:
            api = JsonApi(self._rig.supernode.url, "the supernode")
            wait_until(lambda: len(api.get("/v1/status")["members"]) >= self._members, "every agent a member", 60)
            self.members_back_s = time.monotonic() - up


def _judged(name: str, swarm: Swarm, done: Fill, goal: float | None, slow: int = 0) -> list[Row]:
    least = swarm.least_s(slow)
    return [
        Row(f"{name}: T / T*", done.seconds / least, goal),
        Row(f"{name}: from the supernode / F", done.datacenter.sent / swarm.published.wire_bytes, SUPERNODE_GOAL),
        Row(f"{name}: wrong bytes", done.wrong_bytes, 0),
        Row(f"{name}: T", done.seconds, unit="s"),
        Row(f"{name}: T*", least, unit="s"),
    ]


SCENARIOS: dict[str, Callable[[Swarm], list[Row]]] = {
    "plain": _plain,
    "half-speed": _half_speed,
    "seed-killed": _seed_killed,
    "tracker-killed": _tracker_killed,
    "baseline": _baseline,
}
"""By name, in the order in which `all` runs them."""
