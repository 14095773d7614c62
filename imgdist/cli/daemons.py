"""`imgdist supernode`, `imgdist agent`, `imgdist upgrade` and `imgdist config`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click

from imgdist import config
from imgdist.cli.node import RUN
from imgdist.config import AgentConfig, SupernodeConfig
from imgdist.errors import ConfigError

Kind = type[AgentConfig] | type[SupernodeConfig]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _options(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SHARED = _options(
    click.option("--config", "file", metavar="FILE", help="TOML file; flags win over it."),
    click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any key of `imgdist config`."),
    click.option("--plain-http", multiple=True, metavar="HOST[:PORT]", help="Registry spoken to without TLS."),
    click.option("--allow-plain", is_flag=True, default=None, help="Addresses other than loopback without TLS."),
    click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines on stderr."),
)


def _given(**flags: Any) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value not in (None, ())}


@click.command()
@click.option("--root", metavar="DIR", help="Packs, tables and traces [default: /var/lib/imgdist-supernode].")
@click.option("--listen", metavar="HOST:PORT", help="Control API [default: 127.0.0.1:7600].")
@click.option("--chunk-listen", metavar="HOST:PORT", help="Chunk bodies [default: the port after --listen's].")
@click.option("--metrics-listen", metavar="HOST:PORT", help="/metrics on an address of its own as well.")
@_SHARED
def supernode(file: str | None, settings: tuple[str, ...], **flags: Any) -> int:
    """Read each image from its registry once, convert it, serve its chunks (foreground)."""
    loaded = config.load(SupernodeConfig, file, settings, _given(**flags))
    code: int = importlib.import_module("supernode.app").main(loaded)
    return code


@click.command()
@click.option("--root", metavar="DIR", help="Packs, layer mounts and snapshots [default: /var/lib/imgdist].")
@click.option("--run", metavar="DIR", envvar="IMGDIST_RUN", help="Sockets and the view [default: /run/imgdist].")
@click.option("--supernode", multiple=True, metavar="URL", help="Where chunks come from; none: an embedded one.")
@click.option("--snapshotter-socket", metavar="PATH", help="For containerd [default: RUN/snapshotter.sock].")
@click.option("--mirror-listen", metavar="HOST:PORT", help="Registry mirror [default: 127.0.0.1:7650; '': none].")
@click.option("--peer-listen", metavar="HOST:PORT", help="Chunks for other agents [default: 127.0.0.1:7651].")
@click.option("--peer-advertise", metavar="IP:PORT", help="Where they reach it [default: as a supernode sees it].")
@click.option("--zone", metavar="NAME", help="Rack or zone; agents of the same one are preferred.")
@_SHARED
def agent(file: str | None, settings: tuple[str, ...], **flags: Any) -> int:
    """Mount layers before they are there, on this node (foreground, root)."""
    launch, given = importlib.import_module("agent.launch"), _given(**flags)
    loaded = config.load(AgentConfig, file, settings, given)
    code: int = launch.main(loaded, launch.Given(file, settings, given))
    return code


@click.command()
@RUN
def upgrade(run: str) -> int:
    """Have this release take over from the agent that runs, with its configuration as it is now (root)."""
    code: int = importlib.import_module("agent.upgrading").main(run)
    return code


@click.command(name="config")
@click.option("--defaults", is_flag=True, help="Print commented TOML files with every default.")
@click.option("--check", "file", metavar="FILE", help="Check a file; exit 2 with the first mistake.")
@click.option("--daemon", type=click.Choice(["agent", "supernode"]), help="Whose configuration [default: both].")
def config_command(defaults: bool, file: str | None, daemon: str | None) -> int:
    """Show every configuration key with its default, unit and meaning, or check a file."""
    kinds: dict[str, Kind] = {"agent": AgentConfig, "supernode": SupernodeConfig}
    chosen = {daemon: kinds[daemon]} if daemon else kinds
    if file is not None:
        return _check(file, chosen)
    for name, kind in chosen.items():
        if defaults:
            click.echo(f"# imgdist {name} --config FILE\n{config.toml(kind)}")
            continue
        click.echo(f"imgdist {name}")
        for key, about in config.keys(kind):
            default = config.toml_value(about.default)
            click.echo(f"  {key:<27} {default:<33} {about.description} ({about.type_name})")
    return 0


def _check(file: str, kinds: dict[str, Kind]) -> int:
    """A file is right if one of the daemons takes it; else the mistake shown is of the one that knows its keys."""
    mistakes: list[ConfigError] = []
    right: list[str] = []
    for name, kind in kinds.items():
        try:
            config.load(kind, file)
            right.append(f"imgdist {name}")
        except ConfigError as error:
            mistakes.append(error)
    if right:
        click.echo(f"{file}: right for {' and '.join(right)}")
        return 0
    raise min(mistakes, key=lambda mistake: "unknown field" in str(mistake))


COMMANDS: tuple[click.Command, ...] = (supernode, agent, upgrade, config_command)
