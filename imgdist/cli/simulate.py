"""`imgdist simulate`: a swarm of any size, the agents' own policy over modelled links."""

from __future__ import annotations

import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

import click

from imgdist.errors import ImgdistError

_SAY_S = 5.0
"""How often progress is told."""


class _Range(click.FloatRange):
    """NaN is in no range, though it is not outside one either."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a number, got {value}", param, ctx)
        return number


_RATE = _Range(0.001, 1_000_000)


@click.command()
@click.option("--nodes", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="That start together.")
@click.option("--chunks", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Of the layer.")
@click.option("--chunk-bytes", type=click.IntRange(1, 1 << 20), default=100_000, show_default=True, help="Of each.")
@click.option("--link", metavar="MBIT", type=_RATE, default=1000.0, show_default=True, help="Of each node, both ways.")
@click.option("--up", metavar="MBIT", type=_RATE, help="Of each node's uplink [default: --link].")
@click.option("--supernode-link", metavar="MBIT", type=_RATE, help="Of the supernode's uplink [default: --link].")
@click.option("--latency", metavar="MS", type=_Range(0, 10_000), default=0.25, show_default=True, help="One way.")
@click.option("--loss", metavar="SHARE", type=_Range(0, 0.5), default=0.0, help="Of packets.")
@click.option("--slow", metavar="SHARE", type=_Range(0, 1), default=0.0, help="Of nodes: half the rates.")
@click.option("--dying", metavar="SHARE", type=_Range(0, 0.9), default=0.0, help="Of nodes: vanish.")
@click.option("--supernode-dies", metavar="T", type=_Range(0), help="When, in T*; replaced a second later.")
@click.option("--start-within", metavar="S", type=_Range(0, 86_400), default=0.0, help="Nodes start at random in it.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything random.")
@click.option("--svg", metavar="FILE", type=click.Path(dir_okay=False), help="When nodes were complete, as a picture.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def simulate(as_json: bool, svg: str | None, **flags: Any) -> int:
    """Distribute a layer among many nodes at once, simulated; compare with T*, the least time that links allow."""
    if svg is not None:
        _write(svg, "")  # rather than say after minutes that it cannot be written
    simulation = importlib.import_module("agent.swarm.simulation")
    link = flags["link"] * 1e6
    scenario = simulation.Scenario(
        nodes=flags["nodes"],
        chunks=flags["chunks"],
        chunk_bytes=flags["chunk_bytes"],
        up_bits=link if flags["up"] is None else flags["up"] * 1e6,
        down_bits=link,
        supernode_bits=link if flags["supernode_link"] is None else flags["supernode_link"] * 1e6,
        latency_s=flags["latency"] / 1000,
        loss=flags["loss"],
        slow_share=flags["slow"],
        dying_share=flags["dying"],
        supernode_dies_at=flags["supernode_dies"],
        start_jitter_s=flags["start_within"],
        seed=flags["seed"],
    )
    outcome = simulation.simulate(scenario, _Progress().told)
    if svg is not None:
        _write(svg, simulation.drawing(outcome))
    click.echo(json.dumps(outcome.document()) if as_json else outcome.table())
    return 0


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ImgdistError(f"{file}: {error.strerror}") from None


class _Progress:
    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def told(self, seconds: float, share: float) -> None:
        if time.monotonic() - self._said_at >= _SAY_S:
            self._said_at = time.monotonic()
            click.echo(f"{share:.0%} of all chunks after {seconds:.2f} simulated seconds", err=True)


COMMANDS: tuple[click.Command, ...] = (simulate,)
