"""Children replaced by those of another plan, one after the other, and back again if one of them does not serve.

First all successors are started and stand by: loaded, connected, waiting. Until each does, nothing has been touched.
Then one after the other makes room for its successor: the view is killed, as what it held stands in the slots and is
answered by the next one; the others end by themselves, having finished what they were asked. What they listened on
stays open in the holder, so that whoever connects meanwhile only waits. The standard library alone.
"""

from __future__ import annotations

import time

from agent.nursery import Nursery, StopError, say, why
from agent.offspring import Child

STANDBY_S = 60.0
"""To load a program, which takes 1 s on an idle machine."""
RETIRE_S = 60.0
"""To finish calls. An agent cuts them short long before (agent/leaving.py), an embedded supernode its conversions."""
READY_S = 60.0
"""To serve once it is its turn: 0.1 s and what opening thousands of packs takes."""
SETTLE_S = 2.0
"""For an agent to name a new view its layers: 20 ms and more of them."""
_GRACE_S = 5.0


class ReplacementError(Exception):
    """Another plan's children do not serve, and why. Those of before do."""


def replace(nursery: Nursery, successors: list[Child]) -> None:
    """Have `successors` serve instead of the nursery's children; those without a successor end.

    Raises ReplacementError, after which the nursery has the children of before; StopError.
    """
    former = nursery.children
    places = {child.role: child for child in former}
    try:
        for child in successors:
            if child.role in places:
                _stand_by(nursery, child)
        for child in successors:
            _succeed(nursery, places.get(child.role), child)
    except ReplacementError:
        _return(nursery, former, successors)
        raise
    except StopError:
        roles = [child.role for child in (*former, *successors)]
        running = [child for child in (*former, *successors) if child.running]
        nursery.children = sorted(running, key=lambda child: roles.index(child.role))  # as they are to be ended
        raise
    for child in [child for child in nursery.children if child not in successors]:
        _make_room(nursery, child)
    nursery.children = successors


def _stand_by(nursery: Nursery, child: Child) -> None:
    child.standby = True
    nursery.start(child)
    nursery.turn_until(lambda: child.stands_by or child.has_ended(), STANDBY_S)
    if not child.stands_by:
        raise ReplacementError(f"the new {child.role} does not start: {_reason(child, 'did not load', STANDBY_S)}")


def _succeed(nursery: Nursery, before: Child | None, child: Child) -> None:
    """Have `child` serve in the place of `before`, which ends."""
    if before is None:
        nursery.start(child)
    else:
        _make_room(nursery, before)
        child.tell("go")
    child.standby = False  # when it is started again, that is because it died
    began = time.monotonic()
    nursery.turn_until(lambda: child.ready or child.has_ended(), READY_S)
    if not child.ready:
        raise ReplacementError(f"the new {child.role} does not serve: {_reason(child, 'was not ready', READY_S)}")
    nursery.children = [*nursery.children, child]
    if child.role == "view":  # the agent that serves names it the layers: else reads wait for the one that is to come
        nursery.turn_until(lambda: child.settled, SETTLE_S)
    say(f"{child.role}: process {child.pid} has taken over, {(time.monotonic() - began) * 1e3:.0f} ms after the last")


def _make_room(nursery: Nursery, child: Child) -> None:
    """End a child for its successor's sake."""
    nursery.children = [other for other in nursery.children if other is not child]
    if child.running:
        if child.role == "view":
            child.kill()
        else:
            child.tell("retire")
        if not nursery.turn_until(child.has_ended, RETIRE_S):
            say(f"{child.role} (process {child.pid}) did not end in time: killed")
            child.kill()
            child.wait()
    nursery.forget(child)


def _return(nursery: Nursery, former: list[Child], successors: list[Child]) -> None:
    """Have the programs of before serve again."""
    for child in successors:
        if child not in nursery.children:
            nursery.end(child, _GRACE_S)
    serving = {child.role: child for child in nursery.children}
    ended = [before for before in former if before not in nursery.children and not before.running]
    for before in sorted(ended, key=lambda before: before.role in serving):  # first what nobody serves
        _restore(nursery, before, serving.get(before.role))
    for child in [child for child in nursery.children if child not in former]:
        if all(child.role != before.role for before in former):
            _make_room(nursery, child)
    roles = [child.role for child in former]
    nursery.children.sort(key=lambda child: roles.index(child.role))


def _restore(nursery: Nursery, before: Child, serves: Child | None) -> None:
    """Start what was ended for a successor; where that one `serves`, it does so until its predecessor stands by."""
    try:
        if serves is not None:
            _stand_by(nursery, before)
        _succeed(nursery, serves, before)
    except ReplacementError as error:
        say(f"going back: {error}")
        nursery.end(before, _GRACE_S)
        if serves is None or serves not in nursery.children:  # nobody serves: as after any death, again and again
            before.plan_restart()
            nursery.children = [*nursery.children, before]


def _reason(child: Child, what: str, timeout_s: float) -> str:
    if child.running:
        return f"process {child.pid} {what} within {timeout_s:.0f} s"
    return f"process {child.pid} {why(child.status)}, its message is in the log"
