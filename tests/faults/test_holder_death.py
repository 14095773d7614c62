"""The holder is killed, and all its children with it: the next one makes every mount right again."""

from __future__ import annotations

import time

import pytest
from faults.node import FILLING, Node, Site
from faults.readers import Readers, Report
from faults.schedule import Schedule

from imgdist.demo.processes import wait_until

_DEATHS = {"quick": 3, "full": 20}
_RESCUE_S = {"quick": 20.0, "full": 3.0}


def kill_and_rescue(node: Node, schedule: Schedule, kills: int) -> tuple[Report, list[tuple[float, float]]]:
    """What readers saw, and from when to when each death lasted: from the kill to the last loop that is right."""
    deaths = []
    with Readers(node.targets(fresh_per_s=4), 16, seed=schedule.seed) as readers:
        for _ in range(kills):
            time.sleep(schedule.pause_s(0.2, 1.0))
            begun = time.monotonic()
            node.kill_holder()
            node.start()
            wait_until(node.is_rescued, "the loops rescued", 30)
            deaths.append((begun, time.monotonic()))
        time.sleep(0.3)
        return readers.stop(), deaths


@pytest.mark.timeout(240)
def test_a_new_holder_rescues_every_loop(made: Site, matrix: str) -> None:
    """Only reads between death and rescue may fail, with EIO; all others, and all bytes, are right."""
    schedule = Schedule()
    with Node(made, "holder", FILLING) as node:
        report, deaths = kill_and_rescue(node, schedule, _DEATHS[matrix])
        paths = {target.path for target in node.targets(fresh_per_s=4)}
    times = sorted(end - begun for begun, end in deaths)
    print(f"{len(deaths)} deaths: rescue {times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s at most; {report}")
    outside = [e for e in report.errors if not any(begun <= e[0] + e[1] and e[0] <= end for begun, end in deaths)]
    assert (report.wrong, outside) == ([], [])
    assert {error[4] for error in report.errors} <= {"EIO"}
    assert times[-1] <= _RESCUE_S[matrix]
    assert report.last_good.keys() == paths and min(report.last_good.values()) > deaths[-1][1], report.last_good
