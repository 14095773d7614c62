"""Starting the process that proves a pack, and waiting for its verdict: strangers' bytes are parsed there, not here."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from imgdist.proving.verdict import Verdict

When = Literal["idle", "soon"]
"""Whether a proof has only what nobody else wants of the processors, or somebody waits for it."""
OnProgress = Callable[[int, int], None]
"""Told (bytes looked at, bytes in all, about)."""


class _Line(msgspec.Struct):
    """Either kind of line (imgdist.proving.worker)."""

    outcome: str = ""
    reason: str = ""
    done: int = 0
    total: int = 0


async def prove_aside(
    module: str,
    when: When,
    arguments: Sequence[str],
    on_progress: OnProgress = lambda done, total: None,
    pass_fds: Sequence[int] = (),
) -> Verdict:
    """Run `python -m module when arguments`, which ends as imgdist.proving.worker.report does; killed on cancellation.

    Never raises for what the process does: without a verdict of its own it is `unproven`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, when, *arguments, stdin=DEVNULL, stdout=PIPE, pass_fds=pass_fds
        )
    except OSError as error:
        return Verdict("unproven", f"cannot start the process that proves it: {error.strerror or error}")
    assert process.stdout is not None
    verdict: Verdict | None = None
    try:
        async for line in process.stdout:
            said = msgspec.json.decode(line, type=_Line)
            if said.outcome:
                verdict = msgspec.json.decode(line, type=Verdict)
            else:
                on_progress(said.done, said.total)
        code = await process.wait()
    except (msgspec.DecodeError, ValueError) as error:
        return Verdict("unproven", f"the process that proves it made no sense: {error}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return verdict or Verdict("unproven", f"the process that proves it ended with {code} and no verdict")
