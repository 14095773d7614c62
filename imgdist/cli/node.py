"""Commands that ask this node's agent: `mount`, `umount`, `status`, `images`, `layers`, `peers`."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from imgdist.errors import ImgdistError, UsageError

RUN = click.option(
    "--run", envvar="IMGDIST_RUN", default="/run/imgdist", show_default=True, metavar="DIR", help="The agent's sockets."
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def agent_api(run: str, timeout_s: float = 600.0) -> Any:
    """The JSON API of the agent whose run directory is `run`; each answer may take `timeout_s` seconds."""
    from imgdist.api import JsonApi

    try:
        return JsonApi(f"unix://{os.path.join(os.path.abspath(run), 'api.sock')}", "the agent", timeout_s)
    except UsageError as error:  # too long a path is the machine's limit, no misspelt command (exit code 1)
        raise ImgdistError(f"--run {run}: {error}") from None


def supernode_api(url: str, timeout_s: float) -> Any:
    """The JSON API of a supernode. In a cluster with a key, IMGDIST_KEY_FILE names its file."""
    from imgdist.api import JsonApi
    from imgdist.wire.clusterkey import open_key

    return JsonApi(url, "the supernode", timeout_s, open_key(os.environ.get("IMGDIST_KEY_FILE", "")))


def _show(document: Any, as_json: bool, columns: tuple[str, ...], title: str) -> int:
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return 0
    from imgdist.cli.progress import table

    table(title, columns, document)
    return 0


@click.command()
@click.argument("ref")
@click.argument("directory", metavar="DIR")
@click.option("--rw", is_flag=True, help="With a writable layer of its own on top.")
@RUN
def mount(ref: str, directory: str, rw: bool, run: str) -> int:
    """Show image REF's root file system at DIR, lazily, without containerd."""
    if not os.path.isdir(directory):
        raise UsageError(f"{directory}: expected a directory to mount on; make it first")
    agent_api(run).post("/v1/mounts", {"reference": ref, "directory": os.path.realpath(directory), "writable": rw})
    return 0


@click.command()
@click.argument("directory", metavar="DIR")
@RUN
def umount(directory: str, run: str) -> int:
    """Undo `imgdist mount`."""
    agent_api(run).post("/v1/umount", {"directory": os.path.realpath(directory)})
    return 0


@click.command()
@JSON
@RUN
def status(as_json: bool, run: str) -> int:
    """What this node's agent has and does."""
    document = agent_api(run).get("/v1/status")
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return 0
    from imgdist.cli.progress import properties

    properties(document)
    return 0


@click.command()
@JSON
@RUN
def images(as_json: bool, run: str) -> int:
    """Images this node has seen since its agent was set up, and how long ago their registry confirmed their tags."""
    columns = ("reference", "manifest_digest", "size_bytes", "present_bytes", "complete", "sources", "age_s")
    document = agent_api(run).get("/v1/images")
    for image in document:
        for pack in image.get("revoked", ()):
            click.echo(f"{image['reference']}: pack {pack} is revoked; `imgdist layers` says why", err=True)
    return _show(document, as_json, columns, "images")


@click.command()
@JSON
@RUN
def layers(as_json: bool, run: str) -> int:
    """Layers of this node: state, how much is here, where it came from."""
    columns = ("digest", "state", "size_bytes", "present_bytes", "sources")
    document = agent_api(run).get("/v1/layers")
    for layer in document:
        if layer.get("revoked"):
            users = ", ".join(layer["used_by"]) or "nothing"
            click.echo(f"pack {layer['pack_id']} is revoked, {users} runs on it: {layer['revoked']}", err=True)
    return _show(document, as_json, columns, "layers")


@click.command()
@JSON
@RUN
def peers(as_json: bool, run: str) -> int:
    """Whom this node takes chunks from: agents that it is connected with, and supernodes."""
    columns = ("kind", "name", "address", "zone", "state", "swarms", "received_bytes")
    return _show(agent_api(run).get("/v1/peers"), as_json, columns, "peers")


COMMANDS: tuple[click.Command, ...] = (mount, umount, status, images, layers, peers)
