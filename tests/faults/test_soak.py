"""Faults of every kind in random order under verifying readers: no error, no wrong byte, and nothing wears out.

A few seconds by default; `make soak` (SOAK_S, 30 minutes) is the real one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from faults.edge import Hook
from faults.node import Node, Site, site
from faults.readers import Readers, Target
from faults.schedule import Schedule
from faults.wear import Wear

_FRESH_PER_S, _FILL_PER_S = 1.5, 1.5
"""Windows of 256 KiB that readers, and fill, take each second: there are always bytes missing."""
_SETTINGS = ("fill.quiet_s=0", f"swarm.down_bytes_per_s={int(_FILL_PER_S * 256 * 1024)}")
_GROWTH, _GROWTH_FILES = 0.10, 3.0
"""Of the memory's mean and of the descriptors, by the slope over the whole run; judged from 5 minutes on."""
_JUDGED_S = 300.0
_DISK: list[Hook] = [
    {"call": "os.pwrite", "do": "ENOSPC", "at": 20, "chance": 0.002},
    {"call": "os.pwrite", "do": "EIO", "at": 20, "chance": 0.002},
    {"call": "os.pwrite", "do": "short", "chance": 0.02},
    {"call": "os.pwrite", "do": "delay 0.2", "chance": 0.01},
]
"""The agent's disk misbehaves all the while; not at the first writes, for which a layer would rightly be declined."""


@pytest.fixture(scope="module")
def soak_s(pytestconfig: pytest.Config) -> float:
    """How long the soak lasts."""
    return float(pytestconfig.getoption("soak"))


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory, soak_s: float) -> Iterator[Site]:
    windows = int((_FRESH_PER_S + _FILL_PER_S) * (soak_s + 120) * 1.3)
    with site(tmp_path_factory.mktemp("s"), layers=2, layer_blocks=windows // 2 * 64) as running:
        yield running


def faults(site: Site, node: Node, schedule: Schedule) -> dict[str, Callable[[], object]]:
    """What can go wrong, by name; each returns when it is over."""
    link = site.link

    def for_a_while(attribute: str, value: object, seconds: float) -> None:
        before = getattr(link, attribute)
        setattr(link, attribute, value)
        time.sleep(seconds)
        setattr(link, attribute, before)

    return {
        "view killed": lambda: node.kill("view"),
        "agent killed": lambda: (node.kill("agent"), node.wait_agent()),
        "both killed": lambda: (node.kill("agent"), node.kill("view"), node.wait_agent()),
        "view paused": lambda: node.pause("view", schedule.pause_s(0.05, 0.3)),
        "agent paused": lambda: node.pause("agent", schedule.pause_s(0.05, 0.5)),
        "supernode killed": site.kill_supernode,
        "connections cut": link.cut,
        "slow link": lambda: for_a_while("delay_s", 0.05, 1.0),
        "silent link": lambda: for_a_while("silent", True, schedule.pause_s(0.2, 1.5)),
        "flipped bits": lambda: setattr(link, "flip_next", 1 + schedule.number(3)),
    }


def test_nothing_wears_out(soaked: Site, soak_s: float) -> None:
    schedule, wear, happened = Schedule(), Wear(), Counter[str]()
    with Node(soaked, "n", _SETTINGS, edges={"agent": _DISK}) as node:
        possible = faults(soaked, node, schedule)
        targets: list[Target] = node.targets(fresh_per_s=_FRESH_PER_S)
        with Readers(targets, 16, seed=schedule.seed) as readers:
            ends = time.monotonic() + soak_s
            for name in schedule.choices(list(possible)):
                wear.look({"holder": node.holder, "view": node.pid("view"), "agent": node.pid("agent")})
                if time.monotonic() >= ends:
                    break
                possible[name]()
                happened[name] += 1
                time.sleep(schedule.pause_s(0.1, 2.0))
            assert node.is_filling(), f"nothing was being filled at the end: {node.layers()}"
            report = readers.stop()
        log = node.log()
    print(f"{soak_s:.0f} s, {sum(happened.values())} faults: {dict(happened)}")
    print(report)
    growth = {role: wear.growth(role) for role in wear.samples}
    for *_, text in growth.values():
        print(text)
    assert (report.errors, report.wrong) == ([], []), log[-4000:]
    assert "Traceback" not in log
    if soak_s >= _JUDGED_S:
        assert all(memory <= _GROWTH and files <= _GROWTH_FILES for memory, files, _ in growth.values()), growth
