"""Commands about conversion: `preheat` at a supernode, `convert` of one layer file."""

from __future__ import annotations

import importlib
import json
import os
import platform as machine
import time
from pathlib import Path
from typing import Any

import click

from imgdist.cli.node import RUN, agent_api, supernode_api
from imgdist.errors import ImgdistError

POLL_S = 0.2
"""How often a preheat looks at its layers: often enough for a smooth bar, one small request each."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def native_platform() -> str:
    """This machine's platform as OCI names it, e.g. "linux/amd64"."""
    return f"linux/{_ARCHITECTURES.get(machine.machine(), machine.machine())}"


@click.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--supernode", "url", metavar="URL", help="Which supernode [default: the agent's].")
@click.option("--platform", metavar="OS/ARCH", help="Which platform of a multi-platform image [default: this one].")
@click.option("--wait", is_flag=True, help="Until every layer is converted.")
@RUN
def preheat(refs: tuple[str, ...], url: str | None, platform: str | None, wait: bool, run: str) -> int:
    """Have images fetched and converted before anyone asks for them."""
    supernode = supernode_api(url or _supernode_of(run), timeout_s=120.0)
    for ref in refs:
        request = {"reference": ref, "platform": platform or native_platform(), "convert": True}
        image = supernode.post("/v1/resolve", request)
        if wait:
            _wait(supernode, ref, image)
        click.echo(f"{ref}: {image['manifest_digest']}, {len(image['layers'])} layers", err=True)
    return 0


def _supernode_of(run: str) -> str:
    urls = agent_api(run).get("/v1/status")["supernodes"]
    return str(urls[0])


def _wait(supernode: Any, ref: str, image: dict[str, Any]) -> None:
    from imgdist.cli.progress import Bars

    with Bars(ref) as bars:
        waiting = [layer["digest"] for layer in image["layers"]]
        while waiting:
            for digest in list(waiting):
                layer = supernode.get(f"/v1/layers/{digest}")
                bars.show(digest, layer["received_bytes"], layer["size_bytes"])
                if layer["state"] == "ready":
                    waiting.remove(digest)
                elif layer["state"] in ("declined", "absent"):
                    raise ImgdistError(f"{ref}: layer {digest} was not converted: {layer['reason']}")
            if waiting:
                time.sleep(POLL_S)


@click.command()
@click.argument("layer", type=click.Path(dir_okay=False))
@click.option("-o", "--output", required=True, metavar="DIR", help="Gets image.erofs and index.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def convert(layer: str, output: str, as_json: bool) -> int:
    """Convert one layer file (tar, gzip or zstd, told by content) to a layer image and its index."""
    try:
        os.makedirs(output, exist_ok=True)
        result: dict[str, Any] = importlib.import_module("supernode.convert.standalone").convert_file(
            Path(layer), Path(output)
        )
    except OSError as error:
        raise ImgdistError(f"{error.filename or layer}: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(result))
    else:
        size, seconds = result["image_bytes"], result["seconds"]
        click.echo(f"pack {result['pack_id']}: {size} bytes, {result['chunks']} chunks, {seconds:.2f} s")
    return 0


COMMANDS: tuple[click.Command, ...] = (preheat, convert)
