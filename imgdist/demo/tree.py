"""A directory tree, or what one build step changed in it (an overlayfs upper), as a deterministic layer."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from imgdist.demo.image import EPOCH_S, member

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def add_tree(
    tar: tarfile.TarFile, top: Path, *, leave_out: frozenset[str] = frozenset(), built_s: int = EPOCH_S
) -> None:
    """Add everything below `top` in byte order, paths relative to it.

    overlayfs whiteouts (character device 0:0, opaque directories) become OCI ones (`.wh.NAME`, `.wh..wh..opq`). Times
    later than `built_s` (seconds since 1970), and those of whiteouts, become it; owner names are left out. `leave_out`:
    paths whose content is left out, and files.
    """
    links: dict[tuple[int, int], str] = {}
    for path, name in _walk(top, leave_out):
        status = os.lstat(path)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            folder, _, base = name.rpartition("/")
            tar.addfile(member(f"{folder}/.wh.{base}" if folder else f".wh.{base}", mode=0o644, mtime=built_s))
            continue
        if stat.S_ISSOCK(status.st_mode):
            continue
        info = _describe(path, name, status, links, built_s)
        if info.isreg():
            with open(path, "rb") as content:
                tar.addfile(info, content)
        else:
            tar.addfile(info)
        if info.isdir() and _is_opaque(path):
            tar.addfile(member(f"{name}/.wh..wh..opq", mode=0o644, mtime=built_s))


def _walk(top: Path, leave_out: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(path, name) of every entry, parents first, siblings sorted by bytes."""

    def visit(path: str, prefix: str) -> Iterator[tuple[str, str]]:
        with os.scandir(path) as entries:
            listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in listed:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield entry.path, name
                if name not in leave_out:
                    yield from visit(entry.path, name + "/")
            elif name not in leave_out:
                yield entry.path, name

    yield from visit(os.fspath(top), "")


def _describe(
    path: str, name: str, status: os.stat_result, links: dict[tuple[int, int], str], built_s: int
) -> tarfile.TarInfo:
    mode = status.st_mode
    info = member(
        name,
        mode=stat.S_IMODE(mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=min(int(status.st_mtime), built_s),
    )
    identity = (status.st_dev, status.st_ino)
    if stat.S_ISDIR(mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif stat.S_ISREG(mode) and status.st_nlink > 1 and identity in links:
        info.type, info.linkname = tarfile.LNKTYPE, links[identity]
    elif stat.S_ISREG(mode):
        links[identity] = name
        info.size = status.st_size
        info.pax_headers = {
            f"SCHILY.xattr.{key}": os.getxattr(path, key, follow_symlinks=False).decode("utf-8", "surrogateescape")
            for key in sorted(os.listxattr(path, follow_symlinks=False))
            if not key.startswith(("trusted.", "user.overlay."))
        }
    elif stat.S_ISFIFO(mode):
        info.type = tarfile.FIFOTYPE
    else:
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return info


def _is_opaque(path: str) -> bool:
    present = set(os.listxattr(path, follow_symlinks=False)).intersection(_OPAQUE)
    return any(os.getxattr(path, key, follow_symlinks=False) == b"y" for key in present)
