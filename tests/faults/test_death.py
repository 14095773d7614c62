"""View and agent are killed, one after the other, while readers check every byte of layers that are being filled.

By default a slice, on a machine that other tests may keep busy; `pytest tests/faults --matrix full` is the whole, 100
deaths of each with and without FUSE_NOTIFY_RESEND, and wants the machine for itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from faults.edge import Hook
from faults.node import FILLING, Node, Site
from faults.readers import Readers, Report, merged
from faults.schedule import Schedule

_ROUNDS = {"quick": (5,), "full": (10,) * 10}
"""Deaths of each process, node by node: the layers of one are filled after some more."""
_STALL_S = {"quick": 20.0, "full": 1.0}
_GAP_S = {"quick": 20.0, "full": 0.8}
_NO_RESEND: dict[str, Sequence[Hook]] = {
    "view": [{"call": "fuse.device.KernelReplies.ask_again", "do": "return false", "times": 1000}]
}


@dataclass
class Seen:
    """Of all rounds: what readers saw, and how long the snapshotter socket did not speak after each agent's death."""

    reports: list[Report] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        gaps = sorted(self.gaps_s)
        return (
            f"{len(gaps)} deaths of each: {merged(self.reports)}; snapshotter socket silent "
            f"{gaps[len(gaps) // 2]:.2f} s (median), {gaps[-1]:.2f} s at most"
        )


def _kill_in_turn(node: Node, schedule: Schedule, seen: Seen, deaths: int) -> None:
    with Readers(node.targets(fresh_per_s=8), 16, seed=schedule.seed) as readers:
        time.sleep(0.5)
        for _ in range(deaths):
            node.kill("view")
            time.sleep(schedule.pause_s(0.05, 0.6))
            node.kill("agent")
            seen.gaps_s.append(node.greet_snapshotter())
            time.sleep(schedule.pause_s(0.05, 0.6))
        assert node.is_filling(), "the layers were filled before the end: the test shows less than it says"
        seen.reports.append(readers.stop())


@pytest.mark.timeout(400)
@pytest.mark.parametrize("resend", [True, False], ids=["resend", "no-resend"])
def test_readers_do_not_notice(made: Site, resend: bool, matrix: str) -> None:
    schedule, seen = Schedule(), Seen()
    for number, deaths in enumerate(_ROUNDS[matrix]):
        with Node(made, f"n{int(resend)}{number}", FILLING, edges={} if resend else _NO_RESEND) as node:
            _kill_in_turn(node, schedule, seen, deaths)
            assert f"resend {'asked' if resend else 'no'}" in node.log()
    print(seen)
    report = merged(seen.reports)
    assert (report.errors, report.wrong) == ([], [])
    assert report.longest_s <= _STALL_S[matrix], seen
    assert max(seen.gaps_s) <= _GAP_S[matrix], seen
