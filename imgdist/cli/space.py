"""`imgdist gc`: free what nothing uses, on this node or at a supernode."""

from __future__ import annotations

import json
from typing import Any

import click

from imgdist.cli.node import JSON, RUN, agent_api, supernode_api
from imgdist.errors import UsageError


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--frames", is_flag=True, help="Also what is kept for other agents, of layers in use.")
@click.option("--supernode", metavar="URL", help="At this supernode, which runs on this machine, instead.")
@JSON
@RUN
def gc(dry_run: bool, frames: bool, supernode: str | None, as_json: bool, run: str) -> int:
    """Free the space of layers that nothing uses, and say why the others stay."""
    report = _report(dry_run, frames, supernode, run)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return 0
    from imgdist.cli.progress import table

    tables = {
        "removed": ("would go" if dry_run else "gone", ("pack_id",) if supernode else ("what", "name")),
        "kept": ("stays", ("pack_id", "why")),
    }
    for key, (title, columns) in tables.items():
        if report[key]:
            table(title, (*columns, "size_bytes"), report[key])
    click.echo(f"{report['freed_bytes'] / 1e6:.1f} MB {'would be ' if dry_run else ''}freed")
    return 0


def _report(dry_run: bool, frames: bool, supernode: str | None, run: str) -> Any:
    if supernode is None:
        return agent_api(run).post("/v1/gc", {"dry_run": dry_run, "frames": frames})
    if frames:
        raise UsageError("--frames: a supernode keeps none; leave --frames or --supernode out")
    return supernode_api(supernode, 600.0).post("/v1/gc", {"dry_run": dry_run})


COMMANDS: tuple[click.Command, ...] = (gc,)
