"""Debian in a directory: made by debootstrap, changed by its own apt. Needs root and a Debian mirror."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgdist.demo.processes import command

MIRROR = "http://deb.debian.org/debian"
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
SUITE = "bookworm"


def debootstrap(root: Path, *packages: str) -> None:
    """A minimal Debian 12 as its last point release has it, with `packages` beside what is essential."""
    include = [f"--include={','.join(packages)}"] if packages else []
    command("debootstrap", "--variant=minbase", *include, SUITE, root, MIRROR)


@contextmanager
def security_updates(root: Path) -> Iterator[None]:
    """Inside, apt of `root` knows the security updates since the last point release, too."""
    sources = root / "etc/apt/sources.list.d/security.list"
    sources.write_text(f"deb {SECURITY_MIRROR} {SUITE}-security main\n")
    yield
    sources.unlink()


def apt_get(root: Path, *steps: str) -> None:
    """Run `apt-get` inside `root`, once for each step ("install python3"), and clean up after it."""
    resolver = root / "etc/resolv.conf"
    shutil.copyfile("/etc/resolv.conf", resolver)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LANG": "C"}
    for name in ("http_proxy", "https_proxy"):
        if name in os.environ:
            environment[name] = os.environ[name]
    for step in (*steps, "clean"):
        command("chroot", root, "apt-get", "-q", "-y", *step.split(), env=environment)
    resolver.unlink()
