"""A Docker engine with data and exec roots of its own.

It has neither bridge nor firewall: containers use the host's network, so that nothing of the machine's network changes
(a default dockerd sets FORWARD to DROP and leaves its chains behind).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parts import require

from imgdist.demo.processes import Process


@contextmanager
def engine(directory: Path, **settings: object) -> Iterator[Path]:
    """A running engine with these settings in its daemon.json; yields its socket."""
    require(os.geteuid() == 0, "root")
    require(shutil.which("dockerd"), "dockerd (docker.io)")
    directory.mkdir(exist_ok=True)
    socket = directory / "s"
    (directory / "daemon.json").write_text(json.dumps(settings))
    argv = ["dockerd", "--data-root", f"{directory}/root", "--exec-root", f"{directory}/exec", "-H", f"unix://{socket}"]
    argv += ["-p", f"{directory}/pid", "--config-file", f"{directory}/daemon.json"]
    argv += ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
    try:
        with Process("dockerd", argv, directory / "log", stop_timeout_s=20) as process:
            process.wait_until(lambda: socket.exists() and _pings(socket), 60)
            yield socket
    finally:
        for mount in _mounts_below(directory):
            subprocess.run(["umount", mount], check=True)
        shutil.rmtree(directory)


def pull(socket: Path, image: str, tag: str) -> list[dict[str, str]]:
    """POST /images/create: what the engine said while it pulled; the last word has an "error" if it failed."""
    words = ["-sS", "-X", "POST", "--max-time", "170", "--unix-socket", str(socket)]
    url = f"http://x/images/create?fromImage={image}&tag={tag}"
    done = subprocess.run(["curl", *words, url], capture_output=True, check=True, timeout=180)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _pings(path: Path) -> bool:
    done = subprocess.run(
        ["curl", "-sf", "--unix-socket", path, "http://x/_ping"], capture_output=True, check=False, timeout=10
    )
    return done.stdout == b"OK"


def _mounts_below(directory: Path) -> list[str]:
    """Mount points below a directory, deepest first: the engine leaves its network namespace mounted."""
    points = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return sorted((point for point in points if point.startswith(f"{directory}/")), reverse=True)
