"""`imgdist install` and `imgdist uninstall`: a node gets imgdist, and is rid of it again without anybody noticing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from imgdist.cli.drain import TIMEOUT, drained_layers
from imgdist.cli.node import JSON
from imgdist.errors import ImgdistError, UnsupportedError, UsageError

_AFTER_S = 600.0  # new layers are left to containerd until the agent is gone

_PREFIX = click.option(
    "--prefix",
    envvar="IMGDIST_PREFIX",
    default="/",
    show_default=True,
    metavar="DIR",
    help="Files go below DIR, as for a machine image; no process is touched unless its agent.toml sets `run`.",
)
_CONTAINERD = click.option(
    "--containerd-config",
    default="/etc/containerd/config.toml",
    show_default=True,
    metavar="FILE",
    help="containerd's own file, below the prefix.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@click.command()
@click.option(
    "--containerd",
    "version",
    type=click.Choice(["auto", "1", "2", "none"]),
    default="auto",
    show_default=True,
    help="Whose configuration is written; auto: of the one in PATH.",
)
@_PREFIX
@_CONTAINERD
@_DRY_RUN
@JSON
def install(version: str, prefix: str, containerd_config: str, dry_run: bool, as_json: bool) -> int:
    """Write the agent's unit and containerd's entries; what others wrote stays. Again: brings them up to date."""
    from imgdist.installation import containerd
    from imgdist.installation.install import install as put
    from imgdist.installation.layout import Layout

    _require_root()
    place = Layout.below(os.path.abspath(prefix), containerd_config)
    major = containerd.found_major() if version == "auto" else None if version == "none" else int(version)
    done = put(place, major, dry_run=dry_run)
    lines = [f"{'would write' if dry_run else 'wrote'} {path}" for path in done.written]
    lines += [f"{'would remove' if dry_run else 'removed'} {path}" for path in done.removed]
    lines += [f"kept {path}, which somebody else wrote or edited" for path in done.kept]
    lines += [f"next: {step}" for step in done.next]
    _print(asdict(done), as_json, lines)
    return 0


@click.command()
@click.option("--purge", is_flag=True, help="Delete the agent's ROOT too, but for what is still in use.")
@click.option("--force", is_flag=True, help="Even if containers break; they are named.")
@TIMEOUT
@_PREFIX
@_CONTAINERD
@_DRY_RUN
@JSON
def uninstall(
    purge: bool,
    force: bool,
    timeout_s: float,
    prefix: str,
    containerd_config: str,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Take imgdist off this node. Running containers go on: what they use is completed and switched first; where that
    is impossible nothing is done and they are named."""
    from imgdist.installation import uninstall as steps
    from imgdist.installation.layout import Layout

    _require_root()
    place = Layout.below(os.path.abspath(prefix), containerd_config)
    config = place.config()
    if purge and not place.is_live(config):
        raise UsageError(f"--purge: {place.settings} names no `run` of its own, so there is no node below {prefix}")
    asks = place.is_live(config) and not dry_run
    broken = [] if not asks else steps.depends(config, lambda: drained_layers(config.run, timeout_s, _AFTER_S))
    if broken and not force:
        _go_on(config.run)
        raise ImgdistError(
            f"these would break without the agent: {', '.join(broken)}; nothing was changed. "
            "Run it again when their layers can be completed (imgdist drain), or with --force"
        )
    done = steps.uninstall(place, config, purges=purge, dry_run=dry_run)
    done.broken = broken
    lines = [f"{'would remove' if dry_run else 'removed'} {what}" for what in done.removed]
    lines += [f"kept {one['path']}: {one['reason']}" for one in done.kept]
    lines += [f"broken: {user}" for user in done.broken]
    lines += [f"next: {step}" for step in done.next]
    _print(asdict(done), as_json, lines)
    return 0


def _go_on(run: str) -> None:
    """The agent that stays takes layers over again."""
    try:
        drained_layers(run, 0.0)
    except ImgdistError:
        return  # none answers, or one that cannot


def _print(document: dict[str, Any], as_json: bool, lines: Iterable[str]) -> None:
    for line in [json.dumps(document, indent=2)] if as_json else lines:
        click.echo(line)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise UnsupportedError(f"this changes the system: expected root, running as user {os.geteuid()}")


COMMANDS: tuple[click.Command, ...] = (install, uninstall)
