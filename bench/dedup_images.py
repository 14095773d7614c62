"""Images of four real families, each in two patch releases: made once from what public registries offer, then cached.

Each image is one layer, as `docker build` makes it of one RUN: what two releases share by whole layers counts nowhere.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imgdist.demo.cache import cache_directory
from imgdist.demo.debian import apt_get, debootstrap, security_updates
from imgdist.demo.image import GO_ARCHITECTURES, Image, ImageWriter, load_image
from imgdist.demo.processes import command
from imgdist.demo.recipe import LEAVE_OUT
from imgdist.demo.tree import add_tree
from imgdist.errors import UnsupportedError

_RECIPE = 1
"""Part of the cache's names: raise it when a family changes."""

Say = Callable[[str], None]
Build = Callable[[Path, Path], None]
"""Fills the first directory with the layer's tree; the second one is for what is needed on the way."""


@dataclass(frozen=True, slots=True)
class Family:
    """What is in it, and how each of its two releases is made."""

    name: str
    what: str
    old: Build
    new: Build

    def images(self, say: Say) -> tuple[Image, Image]:
        """Both releases, the older one first."""
        return self._image("old", self.old, say), self._image("new", self.new, say)

    def _image(self, release: str, build: Build, say: Say) -> Image:
        directory = cache_directory() / f"dedup-v{_RECIPE}-{self.name}-{release}-{platform.machine()}"
        if not (directory / "index.json").exists():
            say(f"building, once: {self.name}, {release} release ({self.what})")
            with tempfile.TemporaryDirectory(prefix="imgdist-build-", dir=cache_directory()) as work:
                _write(Path(work), build)
                (Path(work) / "image").rename(directory)
        return load_image(directory)


def _write(work: Path, build: Build) -> None:
    tree, scratch = work / "tree", work / "scratch"
    tree.mkdir()
    scratch.mkdir()
    build(tree, scratch)
    writer = ImageWriter(work / "image")
    writer.add_layer("one release", lambda tar: add_tree(tar, tree, leave_out=LEAVE_OUT))
    writer.finish(command=["/bin/true"])


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise UnsupportedError(f"dedup: expected {program} in PATH, it is missing; name other families (--family)")


def _debian(*, updated: bool) -> Build:
    """Debian 12 as its last point release has it; or with all security updates since."""

    def build(tree: Path, scratch: Path) -> None:
        debootstrap(tree, "ca-certificates", "curl", "git", "nginx", "openssh-client", "python3")
        if updated:
            with security_updates(tree):
                apt_get(tree, "update", "dist-upgrade")

    return build


def _python(*requirements: str) -> Build:
    """Wheels for Python 3.11 with their byte code, as pip installs them unless told otherwise."""

    def build(tree: Path, scratch: Path) -> None:
        command(
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:",
            "--implementation=cp", "--python-version=3.11", f"--platform=manylinux_2_28_{platform.machine()}",
            f"--platform=manylinux2014_{platform.machine()}", "--root-user-action=ignore",
            "--target", tree / "usr/local/lib/python3.11/site-packages", *requirements,
        )  # fmt: skip

    return build


def _node(*packages: str) -> Build:
    """A web application's node_modules."""

    def build(tree: Path, scratch: Path) -> None:
        _need("npm")
        command(
            "npm", "install", "--prefix", tree / "app", "--cache", scratch, "--ignore-scripts", "--no-audit",
            "--no-fund", *packages,
        )  # fmt: skip

    return build


def _go(version: str) -> Build:
    """Go's own tools, as the golang images have them below /usr/local/go."""

    def build(tree: Path, scratch: Path) -> None:
        _need("go")
        module = f"golang.org/toolchain@v0.0.1-go{version}.linux-{GO_ARCHITECTURES[platform.machine()]}"
        settings = {"GOMODCACHE": str(scratch), "GOFLAGS": "-modcacherw"}
        command("go", "mod", "download", module, env={**os.environ, **settings})
        (tree / "usr/local").mkdir(parents=True)
        shutil.move(scratch / module, tree / "usr/local/go")

    return build


FAMILIES = (
    Family(
        "debian",
        "Debian 12.15 with Python, git, curl, nginx and ssh; its security updates of four months",
        _debian(updated=False),
        _debian(updated=True),
    ),
    Family(
        "python",
        "numpy 2.4.5, pandas 3.1.0, scipy 1.17.0, scikit-learn 1.9.0; the next patch release of each",
        _python("numpy==2.4.5", "pandas==3.1.0", "scipy==1.17.0", "scikit-learn==1.9.0"),
        _python("numpy==2.4.6", "pandas==3.1.1", "scipy==1.17.1", "scikit-learn==1.9.1"),
    ),
    Family(
        "node",
        "a Next.js 16.4.5 application's modules; 16.4.6",
        _node("next@16.4.5", "react@19.3.1", "react-dom@19.3.1", "typescript@7.0.2"),
        _node("next@16.4.6", "react@19.3.1", "react-dom@19.3.1", "typescript@7.0.2"),
    ),
    Family("go", "Go 1.26.7; 1.26.8", _go("1.26.7"), _go("1.26.8")),
)
