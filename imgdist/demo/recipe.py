"""The demo's image, built as a Dockerfile would: Debian, apt, pip by package groups, an application, edits, removals.

The release before it comes of the same steps, weeks earlier. Each step runs on an overlayfs whose upper directory
becomes the layer, so whiteouts come about as in a real build.
Needs root, debootstrap, a Debian mirror and PyPI; nothing else of the internet.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

from imgdist.demo import leftovers
from imgdist.demo.cache import cache_directory
from imgdist.demo.debian import apt_get, debootstrap, security_updates
from imgdist.demo.image import EPOCH_S, Image, ImageWriter, load_image
from imgdist.demo.processes import command
from imgdist.demo.tree import add_tree

# Part of the cache's name: raise it when the recipe changes.
RECIPE = 2
APPLICATION = ("python3", "/app/main.py")

_MAIN = Template('''"""Fit a line through noise that is not random: the same answer on every machine."""
import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

x = np.arange(1000.0)
frame = pd.DataFrame({"x": x, "y": 3.0 * x + 7.0 + np.sin(x)})
model = LinearRegression().fit(frame[["x"]], frame["y"])
line = f"slope {model.coef_[0]:.4f} intercept {model.intercept_:.3f}"
print(f"release $release: {line} from {len(frame)} rows", flush=True)
''')

LEAVE_OUT = frozenset(
    {
        "dev", "proc", "sys", "run", "tmp",
        "etc/machine-id", "etc/resolv.conf", "etc/hostname", "etc/hosts",
        "var/cache/apt", "var/cache/ldconfig/aux-cache", "var/lib/apt/lists",
        "var/log/alternatives.log", "var/log/apt", "var/log/bootstrap.log", "var/log/dpkg.log", "var/log/faillog",
        "var/log/lastlog", "var/lib/systemd/random-seed",
    }
)  # fmt: skip
"""What differs from one build to the next, or belongs to this machine and not to an image."""


@dataclass(frozen=True)
class Release:
    """A release of the image: its name, what it brings, and how it is made. `built_s`: seconds since 1970."""

    name: str
    brings: str
    scikit_learn: str
    security_updates: bool
    built_s: int


BEFORE = Release("1.0.0", "", "1.9.0", security_updates=False, built_s=EPOCH_S)
LATEST = Release(
    "1.0.1",
    "Debian's security updates, scikit-learn 1.9.1, the application",
    "1.9.1",
    security_updates=True,
    built_s=EPOCH_S + 30 * 86_400,
)
"""The patch release after BEFORE. Built anew from its base, as such releases are: no layer has the digest it had."""


@dataclass(frozen=True)
class Step:
    """One line of the Dockerfile: what it says, and what it does to the root directory it is given."""

    created_by: str
    act: Callable[[Path], None]


def demo_image(progress: Callable[[str], None] = lambda _: None, release: Release = LATEST) -> Image:
    """The cached image, built first (2-3 minutes) where the cache lacks it. `progress` is told each step."""
    directory = cache_directory() / f"image-v{RECIPE}-{release.name}-{platform.machine()}"
    if not (directory / "index.json").exists():
        with tempfile.TemporaryDirectory(prefix="imgdist-build-", dir=cache_directory()) as work:
            _build(Path(work), release, progress)
            (Path(work) / "image").rename(directory)
    return load_image(directory)


def _build(work: Path, release: Release, progress: Callable[[str], None]) -> Image:
    writer = ImageWriter(work / "image", built_s=release.built_s)
    lowers: list[Path] = []
    try:
        for number, step in enumerate(_steps(release)):
            progress(f"building release {release.name} of the image, once: {step.created_by}")
            upper = work / str(number)
            upper.mkdir()
            with _stacked(work, lowers, upper) as root:
                step.act(root)
            writer.add_layer(
                step.created_by, partial(add_tree, top=upper, leave_out=LEAVE_OUT, built_s=release.built_s)
            )
            lowers.insert(0, upper)
    finally:
        leftovers.unmount_below(work)
    return writer.finish(command=APPLICATION, environment=["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"])


@contextmanager
def _stacked(work: Path, lowers: list[Path], upper: Path) -> Iterator[Path]:
    """The layers so far with `upper` for what changes; the first layer needs no overlay."""
    if not lowers:
        yield upper
        return
    root, scratch = work / "root", work / "scratch"
    for path in (root, scratch):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={scratch}"
    command("mount", "-t", "overlay", "overlay", "-o", options, root)
    try:
        yield root
    finally:
        leftovers.unmount_below(root)


def _steps(release: Release) -> list[Step]:
    return [
        Step("FROM debian:bookworm (minbase)", _debian(release)),
        Step("RUN apt-get install python3", _apt(release)),
        Step("RUN pip install numpy", _pip("numpy==2.4.6")),
        Step("RUN pip install pandas", _pip("pandas==3.1.1", "python-dateutil==2.9.0.post0", "six==1.17.0")),
        Step("RUN pip install scipy", _pip("scipy==1.17.1")),
        Step(
            "RUN pip install scikit-learn",
            _pip(f"scikit-learn=={release.scikit_learn}", "joblib==1.5.3", "threadpoolctl==3.6.0", "narwhals==2.13.0"),
        ),
        Step("COPY app /app", _application(release)),
        Step("RUN configure", _configure),
        Step("RUN remove documentation and tests", _remove),
    ]


def _debian(release: Release) -> Callable[[Path], None]:
    def install(root: Path) -> None:
        debootstrap(root)
        if release.security_updates:
            with security_updates(root):
                apt_get(root, "update", "dist-upgrade")

    return install


def _apt(release: Release) -> Callable[[Path], None]:
    def install(root: Path) -> None:
        with security_updates(root) if release.security_updates else nullcontext():
            apt_get(root, "update", "install --no-install-recommends python3 ca-certificates")

    return install


def _pip(*requirements: str) -> Callable[[Path], None]:
    """Wheels for Debian 12's Python 3.11, fetched by the pip of our own environment, byte-compiled in the image."""

    def install(root: Path) -> None:
        target = root / "usr/local/lib/python3.11/dist-packages"
        command(
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:",
            "--implementation=cp", "--python-version=3.11", f"--platform=manylinux_2_28_{platform.machine()}",
            f"--platform=manylinux2014_{platform.machine()}", "--root-user-action=ignore",
            "--target", target, *requirements,
        )  # fmt: skip
        # Hash-based: valid whatever time the layer gives the sources.
        command(
            "chroot", root, "python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash",
            "/usr/local/lib/python3.11/dist-packages",
        )  # fmt: skip

    return install


def _application(release: Release) -> Callable[[Path], None]:
    def copy(root: Path) -> None:
        folder = root / "app"
        folder.mkdir()
        (folder / "main.py").write_text(_MAIN.substitute(release=release.name))
        (folder / "settings.json").write_text(json.dumps({"rows": 1000}))

    return copy


def _configure(root: Path) -> None:
    (root / "etc/motd").write_text("imgdist demo\n")
    (root / "etc/profile.d/app.sh").write_text("export APP=/app\n")
    (root / "app/settings.json").write_text(json.dumps({"rows": 1000, "verbose": False}))


def _remove(root: Path) -> None:
    for name in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    packages = root / "usr/local/lib/python3.11/dist-packages"
    for tests in sorted(packages.glob("*/tests")):
        shutil.rmtree(tests)
