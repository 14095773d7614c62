"""The guest's root file system: this Python, its libraries, the project and its tests, as a layer image.

It is written by the project's own converter, so that a kernel that boots from it has read one of our images.
"""

from __future__ import annotations

import compileall
import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from layer_image import build_image

TOP = Path(__file__).parents[3]
PROJECT = "/imgdist"
PACKAGES = "/packages"
PYTHON = Path(sys.executable).resolve()

_ROOMS = ("imgdist", "supernode", "agent", "fuse", "tests")
_NOT_NEEDED = shutil.ignore_patterns(
    *("pip", "pip-*", "setuptools*", "mypy*", "*mypyc*", "ast_serialize*", "librt*", "grpc", "grpcio*", "grpc_tools"),
    *("hypothesis*", "_hypothesis*", "pytest_benchmark*", "docker*", "testcontainers*"),
)
_NOT_OF_PYTHON = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "config-*", "test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip"),
)
_PROGRAMS = ("busybox", "docker-registry")
_APPLETS = ("sh", "cat", "dmesg", "grep", "mount", "sleep", "sync", "umount")
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/hosts": b"127.0.0.1 localhost\n",
}
_PIECE_BYTES = 1 << 20


def build(image: Path, run: str) -> None:
    """Write the image. `run` is the script that the guest executes as /run-tests."""
    with tempfile.TemporaryDirectory(prefix="root-") as name:
        tree = Path(name) / "tree"
        _copy_python(tree)
        _copy_programs(tree)
        _copy_libraries(tree)
        for path, content in (_FILES | {"run-tests": run.encode()}).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        for directory in ("dev", "proc", "sys", "tmp", "run", "l"):
            (tree / directory).mkdir()
        archive = Path(name) / "root.tar"
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(tree, arcname=".", filter=_of_root)
        with archive.open("rb") as file:
            build_image(_pieces(file), image)


def _copy_python(tree: Path) -> None:
    """Interpreter and standard library where they are here, third parties in PACKAGES, our own in PROJECT; compiled,
    as an emulated processor takes seconds for that."""
    stdlib, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    _copy_file(PYTHON, tree)
    shutil.copytree(stdlib, tree / stdlib.relative_to("/"), symlinks=True, ignore=_NOT_OF_PYTHON)
    shutil.copytree(packages, tree / PACKAGES[1:], ignore=_NOT_NEEDED)
    for room in _ROOMS:
        shutil.copytree(TOP / room, tree / PROJECT[1:] / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(TOP / "pyproject.toml", tree / PROJECT[1:])
    for directory in (PROJECT, PACKAGES):
        compileall.compile_dir(tree / directory[1:], quiet=2, workers=0, stripdir=str(tree))


def _copy_programs(tree: Path) -> None:
    for name in _PROGRAMS:
        found = shutil.which(name)
        assert found, f"{name} is missing; scripts/parts kernels installs it"
        _copy_file(Path(found), tree, Path("/bin") / name)
    for applet in _APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")


def _copy_libraries(tree: Path) -> None:
    """Every shared library that something in the tree asks for, at the path where the loader finds it here."""
    binaries = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)]
    listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    for path in sorted({Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}):
        if not path.is_relative_to(tree):
            _copy_file(path, tree)


def _copy_file(path: Path, tree: Path, at: Path | None = None) -> None:
    target = tree / (at or path).relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _pieces(file: io.BufferedReader) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
