"""A node with 500 layers: how long each takes to be mounted, and what it costs in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.node import site
from bench.node_processes import NodeProcesses
from bench.report import Row
from bench.scale_images import of_mounts

LAYERS, LAYERS_OF_AN_IMAGE = 500, 125  # overlayfs takes some more; 128 is what other tests hold it to
LAYER_BYTES = 5 << 20  # above what is fetched whole: the view shows it
_RSS_GOAL_KIB, _SECONDS_GOAL = 100, 0.1


def mount_rows(directory: Path, say: Callable[[str], None]) -> list[Row]:
    """Figures of agent, view and holder, nothing being filled. The goals: a node's 500 layers for 50 MiB, and none of
    them noticed by who pulls."""
    with site() as place:
        references = []
        for first in range(0, LAYERS, LAYERS_OF_AN_IMAGE):
            image = of_mounts(directory / f"mounts{first}", first, LAYERS_OF_AN_IMAGE, LAYER_BYTES)
            references.append(place.publish(image, f"mounts{first}"))
            say(f"{first + LAYERS_OF_AN_IMAGE} layers converted")
        with place.agent("mounts", ["fill.mode=none"]) as agent:
            node = NodeProcesses(agent)
            before = node.rss_mib()
            times = []
            for number, reference in enumerate(references):
                started = time.monotonic()
                agent.mount(reference, agent.directory / f"m{number}")
                times.append(time.monotonic() - started)
                say(f"{(number + 1) * LAYERS_OF_AN_IMAGE} layers mounted, the last in {times[-1]:.2f} s")
            after = node.rss_mib()
            shown = sum(layer["state"] == "filling" for layer in agent.layers())
            started = time.monotonic()
            for number in range(len(references)):
                agent.umount(agent.directory / f"m{number}")
            unmounted_s = time.monotonic() - started
    grown = sum(after.values()) - sum(before.values())
    return [
        Row("500 layers: shown by the view", shown, LAYERS, at_least=True),
        Row("500 layers: RSS of all processes, a layer", grown * 1024 / LAYERS, _RSS_GOAL_KIB, "KiB"),
        Row("500 layers: time, a layer", sum(times) / LAYERS, _SECONDS_GOAL, "s"),
        Row("500 layers: the last 125 / the first", times[-1] / times[0]),
        *(Row(f"500 layers: RSS of {role}", size, unit="MiB") for role, size in after.items()),
        Row("500 layers: all unmounted in", unmounted_s, unit="s"),
    ]
