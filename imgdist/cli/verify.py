"""`imgdist verify`: hold what this node has against the layers that images name."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from imgdist.cli.node import JSON, RUN, agent_api
from imgdist.errors import NotFoundError

POLL_S = 0.2
"""How often a look is looked at: often enough for a smooth bar, one small request each."""
_SHORT = 12
"""Hex digits that name a layer: as many as tables show."""


@click.command()
@click.argument("names", metavar="[IMAGE|LAYER]...", nargs=-1)
@JSON
@RUN
def verify(names: tuple[str, ...], as_json: bool, run: str) -> int:
    """Prove that layers on this node are what their images say: all of them, or those of IMAGE, or LAYER.

    LAYER is a digest, diff ID or pack id, or at least 12 of its hex digits. Exit code 1 if any is false or damaged, or
    cannot be proven; a layer that is not wholly here is no failure as far as what is here is right.
    """
    api = agent_api(run)
    layers = _chosen(names, api.get("/v1/layers"), api.get("/v1/images") if names else [])
    rows = [{**_of(layer), **verdict} for layer, verdict in _looked(api, layers)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        from imgdist.cli.progress import table

        table("verified", ("digest", "diff_id", "size_bytes", "outcome", "reason"), rows)
    return int(any(row["outcome"] not in ("proven", "partial") for row in rows))


def _of(layer: dict[str, Any]) -> dict[str, Any]:
    return {key: layer[key] for key in ("digest", "diff_id", "pack_id", "size_bytes")}


def _chosen(names: tuple[str, ...], layers: list[Any], images: list[Any]) -> list[dict[str, Any]]:
    """The layers that have a pack here, in the order of `names`; NotFoundError for a name of nothing."""
    here = [layer for layer in layers if layer["pack_id"]]
    if not names:
        return here
    chosen: dict[str, dict[str, Any]] = {}
    for name in names:
        digests = [digest for image in images if name in _names_of(image) for digest in image["layers"]]
        found = [layer for layer in here if layer["digest"] in digests or _is_called(layer, name)]
        if not found:
            raise NotFoundError(f"{name}: expected an image or layer of this node; `imgdist images`, `imgdist layers`")
        chosen.update((layer["pack_id"], layer) for layer in found)
    return list(chosen.values())


def _names_of(image: dict[str, Any]) -> tuple[str, ...]:
    return image["reference"], image["manifest_digest"], f"{image['name']}@{image['manifest_digest']}"


def _is_called(layer: dict[str, Any], name: str) -> bool:
    digits = name.removeprefix("sha256:")
    known = (str(layer[key] or "").removeprefix("sha256:") for key in ("digest", "diff_id", "pack_id"))
    return len(digits) >= _SHORT and any(one.startswith(digits) for one in known)


def _looked(api: Any, layers: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    from imgdist.cli.progress import Bars

    found = []
    with Bars("verify") as bars:
        for layer in layers:
            look = api.post("/v1/proofs", {"pack_id": layer["pack_id"]})
            while look["verdict"] is None:
                bars.show(layer["digest"] or layer["pack_id"], look["done_bytes"], look["total_bytes"])
                time.sleep(POLL_S)
                look = api.get(f"/v1/proofs/{layer['pack_id']}")
            bars.show(layer["digest"] or layer["pack_id"], look["total_bytes"], look["total_bytes"])
            found.append((layer, look["verdict"]))
    return found


COMMANDS: tuple[click.Command, ...] = (verify,)
