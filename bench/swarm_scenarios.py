"""What may happen while a swarm fills: scenarios, each measured once and judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from statistics import mean

from bench.report import Row
from bench.swarm_bound import Link, least_seconds
from bench.swarm_cluster import Cluster
from bench.swarm_fill import Event, Fill
from bench.swarm_rig import Rig
from imgdist.api import JsonApi
from imgdist.demo.processes import command, wait_until
from imgdist.demo.star import goodput_bytes_per_s

PLAIN_GOAL, DISTURBED_GOAL = 1.3, 1.5
ORIGIN_GOAL, SUPERNODE_GOAL = 1.01, 2.0
MEMBERS_BACK_GOAL_S = 10.0
_KILLED_AT = 0.4
_BUSY = 0.8
"""Share of the cores in use, above which they rather than the links may decide."""
_SOON_S, _LATE_S = 1.0, 8.0


def _plain(cluster: Cluster) -> list[Row]:
    done = cluster.fill()
    published = cluster.published
    origin = published.origin_bytes + done.registry_bytes
    crossed_gb = sum(node.received + node.sent for node in done.nodes) / 1e9
    cpu = {role: sum(node[role] for node in done.cpu_s) for role in ("agent", "view")}
    link_bytes = goodput_bytes_per_s(cluster.bits_per_s) * done.seconds
    received = mean(node.received for node in done.nodes)
    if done.busy > _BUSY:
        cluster.say(f"{done.busy:.0%} of the cores are in use: they may decide, not the links; try a lower --rate-mbit")
    return [
        *_judged("plain", cluster, done, PLAIN_GOAL),
        Row("plain: from the registry / image", origin / published.registry_bytes, ORIGIN_GOAL),
        Row("plain: last node mounted", max(done.mounted_s), unit="s"),
        Row("plain: supernode's uplink in use", 100 * done.datacenter.sent / link_bytes, unit="%"),
        Row(
            "plain: nodes' downlinks in use, mean",
            100 * received / link_bytes,
            unit="%",
        ),
        Row("plain: cores busy", 100 * done.busy, unit="%"),
        Row("plain: cores busy with what is not the swarm's", 100 * done.others, unit="%"),
        *(
            Row(f"plain: {role} CPU, a GB received or sent", spent / crossed_gb, unit="s/GB")
            for role, spent in cpu.items()
        ),
        Row("plain: RSS of a node, largest", max(sum(node.values()) for node in done.peak_rss_mib), unit="MiB"),
        Row("plain: RSS of its agent process, largest", max(node["agent"] for node in done.peak_rss_mib), unit="MiB"),
    ]


def _half_speed(cluster: Cluster) -> list[Row]:
    slow = ceil(len(cluster.spokes) / 5)
    done = cluster.fill(slow=slow)
    fast = max(done.complete_s[slow:])
    return [
        *_judged("half-speed", cluster, done, DISTURBED_GOAL, slow),
        Row("half-speed: nodes at full speed, T / T* of a swarm without the slow", fast / cluster.least_s()),
    ]


def _seed_killed(cluster: Cluster) -> list[Row]:
    return _judged("seed-killed", cluster, cluster.fill([_Outage(cluster.rig, _SOON_S).event]), DISTURBED_GOAL)


def _tracker_killed(cluster: Cluster) -> list[Row]:
    outage = _Outage(cluster.rig, _LATE_S, members=len(cluster.spokes))
    done = cluster.fill([outage.event])
    return [
        *_judged("tracker-killed", cluster, done, None),
        Row("tracker-killed: members back after", outage.members_back_s, MEMBERS_BACK_GOAL_S, "s"),
        Row(f"tracker-killed: filled in {_LATE_S:g} s without supernode", 100 * outage.filled_share(done), unit="%"),
    ]


def _baseline(cluster: Cluster) -> list[Row]:
    """Nothing of ours: every node copies the image from the registry at once."""
    cluster.shape()

    def copy(number: int) -> None:
        target = cluster.rig.directory / f"copy{number}"
        source = f"docker://{cluster.published.reference}"
        skopeo = ("skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", source, f"dir:{target}")
        command(*cluster.spokes[number].inside, *skopeo)

    before, started = cluster.rig.registry_wrote_bytes(), time.monotonic()
    with ThreadPoolExecutor(len(cluster.spokes)) as pool:
        list(pool.map(copy, range(len(cluster.spokes))))
    took, size = time.monotonic() - started, cluster.published.registry_bytes
    full = goodput_bytes_per_s(cluster.bits_per_s)
    link = Link(full, full)
    least = least_seconds(size, cluster.published.chunks, link, [link] * len(cluster.spokes))
    return [
        Row("baseline: T / T* (of the compressed layers)", took / least),
        Row("baseline: from the registry / image", (cluster.rig.registry_wrote_bytes() - before) / size),
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
            wait_until(lambda: api.get("/v1/status")["swarm"]["members"] >= self._members, "every agent a member", 60)
            self.members_back_s = time.monotonic() - up


def _judged(name: str, cluster: Cluster, done: Fill, goal: float | None, slow: int = 0) -> list[Row]:
    least = cluster.least_s(slow)
    return [
        Row(f"{name}: T / T*", done.seconds / least, goal),
        Row(f"{name}: from the supernode / F", done.datacenter.sent / cluster.published.wire_bytes, SUPERNODE_GOAL),
        Row(f"{name}: wrong bytes", done.wrong_bytes, 0),
        Row(f"{name}: T", done.seconds, unit="s"),
        Row(f"{name}: T*", least, unit="s"),
    ]


FILLS: dict[str, Callable[[Cluster], list[Row]]] = {
    "plain": _plain,
    "half-speed": _half_speed,
    "seed-killed": _seed_killed,
    "tracker-killed": _tracker_killed,
    "baseline": _baseline,
}
"""By name, in the order in which `all` runs them."""
