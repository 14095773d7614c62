"""View and agent die at chosen calls of the kernel: between a read and its slot, a write and its mark, and the like."""

from __future__ import annotations

import time

import pytest
from faults.edge import Hook
from faults.node import Node, Site
from faults.readers import Readers
from faults.schedule import Schedule

from imgdist.demo.processes import wait_until

# A successor begins with what all readers wait for: later than that, or it would die again before it serves.
_VIEW: list[Hook] = [
    {"call": "os.readv", "do": "kill after", "at": "200-1500"},  # a request stands in its slot, nobody looked at it
    {"call": "os.writev", "do": "kill", "at": "200-1500"},  # looked at, not answered
    {"call": "os.writev", "do": "kill after", "at": "200-1500"},  # answered, its slot or entry not free yet
    {"call": "fuse.slots.Slots.put", "do": "kill after", "at": "40-150"},  # parked, and in the slot still
    {"call": "fuse.slots.Slots.drop", "do": "kill", "at": "40-150"},  # answered, and in the table still
]
_FAST = ("fill.quiet_s=0", "swarm.down_bytes_per_s=4000000")
_AGENT: list[Hook] = [
    {"call": "os.pwrite", "do": "kill", "at": "30-150"},
    {"call": "os.pwrite", "do": "kill after", "at": "30-150"},  # written, not marked
    {"call": "fuse.present.PresentMap.mark", "do": "kill after", "at": "30-150"},  # marked, the view not told
    {"call": "fuse.link.ViewLink.ready", "do": "kill", "at": "20-80"},  # in the ring, not told
    {"call": "fuse.link.ViewLink.ready", "do": "kill after", "at": "20-80"},  # told, not written
    {"call": "os.pwrite", "do": "short", "chance": 0.1},
]
_SWITCH: list[Hook] = [
    {"call": "agent.layers.loop.change_file", "do": "kill", "at": "1-4"},  # durable, and behind the view still
    {"call": "agent.layers.loop.change_file", "do": "kill after", "at": "1-4"},  # local, and in the view still
    {"call": "fuse.link.ViewLink.remove", "do": "kill after", "at": "1-4"},  # out of the view, and not told further
]


@pytest.mark.parametrize(("role", "hooks"), [("view", _VIEW), ("agent", _AGENT)])
def test_death_at_a_call_costs_no_read(made: Site, role: str, hooks: list[Hook]) -> None:
    schedule = Schedule()
    with Node(made, role, _FAST, edges={role: hooks}) as node:
        with Readers(node.targets(fresh_per_s=40), 16, seed=schedule.seed) as readers:
            time.sleep(3)
            wait_until(lambda: deaths(node, role) >= 3, f"three deaths of the {role}", 60)
            report = readers.stop()
        print(f"{deaths(node, role)} deaths: {report}")
    assert (report.errors, report.wrong) == ([], [])


def test_death_around_the_switch_leaves_layers_local_and_right(made: Site) -> None:
    """Each layer leaves the view under its readers, however often the agent dies before, in and after that."""
    schedule = Schedule()
    settings = ("fill.quiet_s=0", "switch.idle_s=0")
    with Node(made, "switch", settings, edges={"agent": _SWITCH}) as node:
        targets = node.targets(fresh_per_s=100)
        with Readers(targets, 8, seed=schedule.seed) as readers:
            wait_until(node.is_local, "both layers local", 80)
            node.kill("agent")
            node.kill("view")  # nobody needs them any more
            time.sleep(0.5)
            report = readers.stop()
        print(f"{deaths(node, 'agent')} deaths: {report}")
    assert (report.errors, report.wrong) == ([], [])


def deaths(node: Node, role: str) -> int:
    """How often the holder has started this process again."""
    return node.log().count(f"holder: {role} (process")
