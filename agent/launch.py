"""From a configuration to running processes: checks the machine, then becomes the holder.

The holder gets one plain plan (sockets, children) and knows no configuration; what it starts is decided here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent import bytecode
from agent.swarm.identity import check_advertised
from imgdist import __version__, command, daemon
from imgdist.config import AgentConfig, toml_value
from imgdist.errors import ConfigError, ImgdistError, UnsupportedError
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import open_key
from imgdist.wire.mesh import NAME_MAX

SOCKET_PATH_MAX = 107
"""Bytes of a unix socket's path (sockaddr_un in linux/un.h: 108 with the final zero)."""

_SPARING = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_MMAP_THRESHOLD_": "1048576"}
"""glibc's malloc (mallopt(3)) for view and agent: an arena for each of twenty threads is memory that stays theirs, and
under Python's lock they hardly allocate at once; what a burst of work leaves free goes back. Measured, 50 layers: the
agent 7 MiB smaller, no slower. Not for the supernode, whose compressors do allocate at once."""

_NO_PUBLIC_CAS = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""For the agent: it speaks to nobody whom a public authority vouches for, but aiohttp, imported, reads all of those
authorities' certificates: 1.5 MiB and 60 ms of the start."""

_PATHS = ("root", "run", "snapshotter_socket")

_SEPARATORS = frozenset(",:\\")
"""What separates options and lower directories: containerd joins our paths as they are."""


class Given(msgspec.Struct, frozen=True):
    """What a configuration was loaded from, as imgdist.config.load takes it: an upgrade loads it anew."""

    file: str | None = None
    settings: tuple[str, ...] = ()
    flags: dict[str, Any] = {}


def main(config: AgentConfig, given: Given) -> int:
    """Replace this process by the holder of an agent. Returns only by raising the reason why it cannot."""
    plan = checked_plan(config, given)
    for name in missing_features():
        print(f"imgdist: no {name} on this machine: every image is pulled the ordinary way", file=sys.stderr)
    daemon.allow_open_files()
    arguments = holder_program(plan)
    os.execve(arguments[0], arguments, {**os.environ, **release_environment()})


def checked_plan(config: AgentConfig, given: Given) -> dict[str, Any]:
    """The holder's plan for a configuration that this machine can have. `given`: where that came from."""
    if os.geteuid() != 0:
        raise UnsupportedError(f"imgdist agent mounts file systems: expected root, running as user {os.geteuid()}")
    config = absolute(config)
    for url in config.supernode:
        _check_url(url)
    open_key(config.access.key_file)
    if config.require_agreement > max(1, len(set(config.supernode))):
        raise ConfigError(
            f"require_agreement = {config.require_agreement}: expected as many supernodes, found"
            f" {len(set(config.supernode))}; name more by --supernode, or lower it"
        )
    if shares(config):
        _check_peer_addresses(config)
    if config.mirror_listen:
        _check_listener("--mirror-listen", config.mirror_listen, "as registry clients have it", config.allow_plain)
    if wrong := _SEPARATORS & set(config.root):
        raise ConfigError(
            f"--root {config.root}: expected a path without {' '.join(wrong)}, which overlayfs reads as its own"
        )
    for directory in (config.root, config.run):
        _prepare_directory(directory)
    return holder_plan(config, lazy=not missing_features()) | {
        "release": __version__,
        "launch": msgspec.to_builtins(_anywhere(given)),
        "upgrade": {
            "argv": [*command.installed(), "upgrade", "--run", config.run],
            "environment": {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONSAFEPATH": "1"},
        },
    }


def _anywhere(given: Given) -> Given:
    """The same from whatever directory it is loaded again."""
    paths = {key: os.path.abspath(given.flags[key]) for key in _PATHS if key in given.flags}
    file = given.file and os.path.abspath(given.file)
    return msgspec.structs.replace(given, file=file, flags={**given.flags, **paths})


def holder_program(plan: dict[str, Any]) -> list[str]:
    """The command line of this release's holder."""
    return [_python(), "-m", "agent.holder", json.dumps(plan)]


def release_environment() -> dict[str, str]:
    """Variables by which the holder and its children find this release, whatever is installed later. Safe path:
    `python -m` would look into the current directory first, and we are root."""
    return {"PYTHONPATH": _python_path(), "PYTHONSAFEPATH": "1"}


def absolute(config: AgentConfig) -> AgentConfig:
    """`config` with absolute paths and every default that depends on another key filled in."""
    run = os.path.abspath(config.run)
    socket = config.snapshotter_socket or os.path.join(run, "snapshotter.sock")
    access = config.access
    if access.key_file:
        access = msgspec.structs.replace(access, key_file=os.path.abspath(access.key_file))
    return msgspec.structs.replace(
        config, access=access, root=os.path.abspath(config.root), run=run, snapshotter_socket=os.path.abspath(socket)
    )


def supernode_urls(config: AgentConfig) -> tuple[str, ...]:
    """The supernodes to ask, in order: the configured ones, or the embedded one's socket."""
    return config.supernode or (f"unix://{config.run}/supernode.sock",)


def shares(config: AgentConfig) -> bool:
    """Whether this node exchanges chunks with others: an embedded supernode serves one machine."""
    return bool(config.supernode) and config.swarm.enabled


def mirrors(config: AgentConfig, lazy: bool) -> bool:
    """Whether this node is a registry mirror: there has to be a supernode, whose registry it is a part of."""
    return bool(config.mirror_listen) and (lazy or bool(config.supernode))


def holder_plan(config: AgentConfig, lazy: bool) -> dict[str, Any]:
    """The holder's plan; without `lazy` (no EROFS, FUSE or loop) there is neither a view nor a supernode.

    Raises ImgdistError if a socket's path is longer than the kernel takes.
    """
    sockets = {
        "snapshotter": (config.snapshotter_socket, "stream"),
        "api": (f"{config.run}/api.sock", "stream"),
        "view": (f"{config.run}/view.sock", "seqpacket"),
        "holder": (f"{config.run}/holder.sock", "seqpacket"),
    }
    if lazy and not config.supernode:
        sockets["supernode"] = (f"{config.run}/supernode.sock", "stream")
        sockets["chunks"] = (f"{config.run}/chunks.sock", "stream")
    for path, _ in sockets.values():
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise ImgdistError(
                f"{path}: expected a socket path of at most {SOCKET_PATH_MAX} bytes, got {len(os.fsencode(path))}; "
                "choose a shorter --run or --snapshotter-socket"
            )
    mirror_listen = str(Address.parse(config.mirror_listen)) if mirrors(config, lazy) else ""
    peer_listen = str(Address.parse(config.peer_listen)) if shares(config) else ""  # as getaddrinfo(3) takes it
    return {
        "run": config.run,
        "root": config.root,
        "fuse": lazy,
        "sockets": [
            *({"name": name, "path": path, "type": kind} for name, (path, kind) in sockets.items()),
            *([{"name": "peer", "tcp": peer_listen, "type": "stream"}] if lazy and shares(config) else []),
            *([{"name": "mirror", "tcp": mirror_listen, "type": "stream"}] if mirror_listen else []),
        ],
        "children": list(_children(config, lazy)),
        "stop_timeout_s": config.stop_timeout_s,
        "watchdog_s": config.watchdog_s,
    }


def _children(config: AgentConfig, lazy: bool) -> Iterator[dict[str, Any]]:
    release = release_environment()
    wanted = _SPARING | bytecode.variables()
    sparing = {name: os.environ.get(name, value) for name, value in wanted.items()} | release
    if lazy and not config.supernode:
        yield {"role": "supernode", "argv": _supernode_command(config), "environment": release}
    if lazy:
        deadline_s = 0 if config.read.on_no_source == "hold" else config.read.deadline_s
        view = [_python(), "-m", "fuse.main", "--deadline", str(deadline_s)]
        view += ["--log-format", config.log_format]
        yield {"role": "view", "argv": view, "environment": sparing}
    settings = msgspec.json.encode(config).decode()
    agent = [_python(), "-m", "agent.main", settings, "lazy" if lazy else "plain"]
    yield {"role": "agent", "argv": agent, "environment": sparing | _NO_PUBLIC_CAS}


def _supernode_command(config: AgentConfig) -> list[str]:
    command = [_python(), "-m", "imgdist.cli", "supernode", "--root", f"{config.root}/supernode"]
    command += ["--listen", f"unix://{config.run}/supernode.sock", "--chunk-listen", f"unix://{config.run}/chunks.sock"]
    command += ["--log-format", config.log_format]
    for registry in config.plain_http:
        command += ["--plain-http", registry]
    for section in ("convert", "limits", "registry", "access", "tags"):
        for key, value in msgspec.to_builtins(getattr(config, section)).items():
            command += ["--set", f"{section}.{key}={toml_value(value)}"]
    for key in ("high", "low"):  # its disk is ours
        command += ["--set", f"space.{key}={getattr(config.space, key)}"]
    return command


def missing_features() -> list[str]:
    """What this kernel lacks of EROFS, FUSE, loop devices and overlayfs, after asking modprobe for it."""
    return [name for name, present in _features() if not present]


def _features() -> Iterator[tuple[str, bool]]:
    for name in ("erofs", "fuse", "overlay"):
        yield name, _has_file_system(name)
    yield "/dev/fuse", os.path.exists("/dev/fuse")
    if not os.path.exists("/dev/loop-control"):
        _modprobe("loop")
    yield "/dev/loop-control", os.path.exists("/dev/loop-control")


def _has_file_system(name: str) -> bool:
    known = Path("/proc/filesystems")
    if name not in known.read_text().split():
        _modprobe(name)
    return name in known.read_text().split()


def _modprobe(module: str) -> None:
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", module], check=False, stderr=subprocess.DEVNULL)


def _check_url(url: str) -> None:
    try:
        Address.parse(url)
    except ImgdistError as error:
        raise ConfigError(f"--supernode {url}: {error}") from None


def _check_peer_addresses(config: AgentConfig) -> None:
    _check_listener("--peer-listen", config.peer_listen, "other nodes are to reach it", config.allow_plain)
    check_advertised(config.peer_advertise)
    if not config.zone.isprintable() or len(config.zone) > NAME_MAX:
        raise ConfigError(f"--zone {config.zone!r}: expected at most {NAME_MAX} printable characters")


def _check_listener(flag: str, listen: str, why: str, allow_plain: bool) -> None:
    what = f"{flag} {listen}"
    try:
        address = Address.parse(listen)
    except ImgdistError as error:
        raise ConfigError(f"{what}: {error}") from None
    if address.path:
        raise ConfigError(f"{what}: expected host:port, {why}")
    if not (address.is_local or allow_plain):
        raise ConfigError(f"{what}: TLS is not spoken here; expected a loopback address or --allow-plain")


def _prepare_directory(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        probe = os.path.join(directory, f".writable-{os.getpid()}")
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise ImgdistError(f"{directory}: expected a writable directory: {error.strerror}") from None


def _python() -> str:
    """This environment's interpreter, by a path that goes on to mean it when a symlink is set to a newer one's."""
    if sys.prefix == sys.base_prefix:
        return sys.executable
    return os.path.join(os.path.realpath(sys.prefix), "bin", os.path.basename(sys.executable))


def _python_path() -> str:
    """The folder that holds our packages, before whatever PYTHONPATH says: the children are of the same release."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
