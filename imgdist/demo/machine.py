"""What the demo needs of the machine: asked before anything is started, installed from Debian where it is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imgdist.demo.processes import command
from imgdist.errors import ImgdistError, UnsupportedError

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "docker-registry": "docker-registry",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "tc": "iproute2",
    "losetup": "mount",
    "mount": "mount",
    "nsenter": "util-linux",
}
"""Program: the Debian package it comes from. scripts/parts demo installs the same."""

COPY_PACKAGES = {"skopeo": "skopeo"}
"""Needed only to bring an image from another registry (--image)."""

_POLICY = Path("/usr/sbin/policy-rc.d")


def check() -> None:
    """Raises UnsupportedError naming everything that this machine lacks and apt cannot bring."""
    lacking = []
    if platform.system() != "Linux":
        raise UnsupportedError(f"demo: expected Linux, this is {platform.system()}")
    if os.geteuid() != 0:
        lacking.append("root (network namespaces, mounts; run it with sudo)")
    else:
        _load_modules("erofs", "fuse", "loop", "overlay", "veth", "sch_tbf")
        systems = Path("/proc/filesystems").read_text().split()
        lacking += [f"file system {name} in the kernel" for name in ("erofs", "fuse", "overlay") if name not in systems]
        lacking += [path for path in ("/dev/fuse", "/dev/loop-control") if not Path(path).exists()]
    if platform.machine() not in ("x86_64", "aarch64"):
        lacking.append(f"x86_64 or aarch64 (this is {platform.machine()})")
    if lacking:
        raise UnsupportedError("demo: this machine lacks " + "; ".join(lacking))


def install_missing(programs: dict[str, str], progress: Callable[[str], None]) -> list[str]:
    """Install the packages of missing programs by apt-get; the packages. Services that they bring are not started.

    Raises UnsupportedError where there is no apt-get, ImgdistError where it fails.
    """
    missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if not missing:
        return []
    if shutil.which("apt-get") is None:
        raise UnsupportedError(f"demo: expected {', '.join(missing)} or Debian's apt-get, found neither; install them")
    progress(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        command("apt-get", "update", "-q", env=environment)
        command("apt-get", "install", "-q", "-y", "--no-install-recommends", *missing, env=environment)
    return missing


def describe() -> str:
    """This machine in one line, for figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{kernel}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB, Python {platform.python_version()}"


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian's policy-rc.d says no while we install: a registry of the package's own would take port 5000."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _load_modules(*names: str) -> None:
    """Ask for kernel modules that may not be built in; what is missing afterwards is found by looking."""
    if shutil.which("modprobe") is None:
        return
    for name in names:
        try:
            command("modprobe", "--quiet", name)
        except ImgdistError:
            continue
