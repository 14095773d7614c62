"""`imgdist drain`: finish and switch what is in use, so that nothing running needs this agent any more."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from imgdist.cli.node import JSON, RUN, agent_api
from imgdist.errors import ImgdistError

TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=86_400),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Seconds until what is not complete is given up.",
)
_POLL_S = 0.5
_PROBE_S = 5.0
_ANSWER_S = 30.0  # beyond the time of the drain itself


@click.command()
@TIMEOUT
@JSON
@RUN
def drain(timeout_s: float, as_json: bool, run: str) -> int:
    """Complete and switch every layer in use: containers then run without this agent, which goes on."""
    drained = drained_layers(run, timeout_s)
    if as_json:
        click.echo(json.dumps(drained, indent=2))
    if drained["left"]:
        raise ImgdistError(f"{why_left(drained['left'])}; is a source of theirs reachable? imgdist peers shows them")
    if not as_json:
        click.echo(f"{drained['switched']} layers completed and switched; nothing that runs needs this agent")
    return 0


def drained_layers(run: str, timeout_s: float, leave_s: float = 0.0) -> Any:
    """Have the agent drain itself, with bars on a terminal; its report. New layers are left to containerd meanwhile and
    for `leave_s` seconds after."""
    from imgdist.cli.progress import Bars

    agent_api(run, _PROBE_S).get("/v1/status")  # one that hangs is found out at once
    patient = agent_api(run, timeout_s + _ANSWER_S)
    with ThreadPoolExecutor(max_workers=1) as waiter, Bars("draining") as bars:
        request = {"timeout_s": timeout_s, "leave_s": leave_s}
        asked = waiter.submit(patient.post, "/v1/drain", request)
        while True:
            try:
                return asked.result(_POLL_S)
            except TimeoutError:
                if asked.done():  # the agent's own error, not ours: a time-out of the socket
                    raise
                _show(bars, agent_api(run).get("/v1/layers"))


def why_left(left: list[dict[str, Any]]) -> str:
    """One line: which layers are incomplete, and who reads them."""
    layers = ", ".join(
        f"{layer['digest'] or layer['pack_id']} ({layer['present_bytes']} of {layer['size_bytes']} bytes)"
        for layer in left
    )
    users = sorted({user for layer in left for user in layer["used_by"]})
    return f"layers not completed: {layers}; in use by {', '.join(users) or 'nothing that runs'}"


def _show(bars: Any, layers: list[dict[str, Any]]) -> None:
    for layer in layers:
        if layer["state"] == "filling":
            bars.show(layer["digest"] or layer["pack_id"], layer["present_bytes"], layer["size_bytes"])


COMMANDS: tuple[click.Command, ...] = (drain,)
