"""How an agent makes room for its successor: every call that it was given is answered first, then it ends at once.

Nothing is synced or filled, unlike at a stop: what an agent that is killed loses nothing by, one that leaves need not
wait for, and readers whose bytes are missing wait for the successor meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.snapshotter.server import SnapshotsServer
from agent.taking import NodeLayers

log = logging.getLogger("imgdist.agent")

PATIENCE_S = 10.0
"""For a moment without a call. All are served meanwhile, also new ones: most take milliseconds."""
CUT_S = 5.0
"""Then for layers under way to be left to containerd, which goes on with an ordinary pull."""
_LOOK_S = 0.005


async def leave(
    server: SnapshotsServer,
    api_calls: Callable[[], int],
    layers: NodeLayers | None,
    farewell: Callable[[], Awaitable[None]],
) -> None:
    """Return when containerd's connections are given back at a moment without calls, or at the end of our patience.

    `farewell` ends what goes on for others until there is such a moment; what comes during it is answered, too."""

    def is_quiet() -> bool:
        return not server.calls and not api_calls()

    was_quiet = await _until(is_quiet, PATIENCE_S)
    await farewell()
    if not (was_quiet and await _until(is_quiet, PATIENCE_S)):
        if layers is not None:
            layers.stop()
        if not await _until(is_quiet, CUT_S):
            log.warning("%d calls of containerd and %d of commands are cut off", server.calls, api_calls())
    server.leave()
    await asyncio.sleep(0)  # what was written goes out


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """No suspension lies between the condition and the return."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
