"""What lies where under a supernode's root, and how packs are named on disk and on the wire.

::

    packs/<pack id>/index       the record stream (imgdist.pack.records)
    packs/<pack id>/chunks      encoded chunk bodies, one after another
    packs/<pack id>/table       16 bytes a chunk: <QIBxxx offset, length, encoding in `chunks`
    packs/<pack id>/tar-split   the tar-split stream, zstd; a raw pack has none
    packs/<pack id>/looked-at   empty; its modification time is when it was last tried to prove the pack
    packs/.part-<layer>-v0/     the same, being written
    packs/.removed-<pack id>/   being removed
    layers/<layer>-v0           symlink to ../packs/<pack id>; a blob's raw pack has -v10000 (imgdist.pack.kinds)
    revoked/<pack id>           why nothing is this pack any more

A writer appends a chunk's body, then its row, then its index record: whoever sees one finds what came before it. The
modification time of a sealed pack's `table` is when it was last resolved or served.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from pathlib import Path

from imgdist.errors import UsageError
from imgdist.pack.kinds import Kind

INDEX, CHUNKS, TABLE, TAR_SPLIT = "index", "chunks", "table", "tar-split"
LOOKED_AT = "looked-at"
ROW = struct.Struct("<QIBxxx")
PART_PREFIX = ".part-"
GRAVE_PREFIX = ".removed-"
_HEX = r"[0-9a-f]{64}"
_PACK_NAME = re.compile(_HEX)
_LAYER_NAME = re.compile(rf"sha256-({_HEX}-v[0-9]{{1,5}})")
_LAYER_DIGEST = re.compile(rf"sha256:({_HEX})")


class Layout:
    """Paths of a store; knows no file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packs = root / "packs"
        self.layers = root / "layers"
        self.revoked = root / "revoked"

    def pack(self, pack_id: str) -> Path:
        """Directory of a sealed pack. `UsageError` if `pack_id` is not 64 hexadecimal digits."""
        if not _PACK_NAME.fullmatch(pack_id):
            raise UsageError(f"pack id {pack_id!r}: expected 64 lower-case hexadecimal digits")
        return self.packs / pack_id

    def link(self, digest: str, kind: Kind = Kind.LAYER) -> Path:
        """The symlink that says which pack a layer or blob is."""
        return self.layers / _key(digest, kind)

    def part(self, digest: str, kind: Kind = Kind.LAYER) -> Path:
        """Directory in which the pack of a layer or blob is being written."""
        return self.packs / (PART_PREFIX + _key(digest, kind))

    def candidates(self, name: str) -> tuple[Path, ...]:
        """Where a pack may lie that the wire calls `name`, in the order to try; nothing for a name that is none.

        The link is tried again after the part: the pack may have been sealed between the two looks.
        """
        if _PACK_NAME.fullmatch(name):
            return (self.packs / name,)
        if layer := _LAYER_NAME.fullmatch(name):
            link = self.layers / layer[1]
            return (link, self.packs / (PART_PREFIX + layer[1]), link)
        return ()


def source_of_link(name: str) -> tuple[str, Kind] | None:
    """The digest and kind that a name in `layers/` stands for; None if it is of another format version, or no link."""
    key, _, version = name.partition("-v")
    kind = next((kind for kind in Kind if version == str(kind.name_version)), None)
    return (f"sha256:{key}", kind) if kind is not None and _PACK_NAME.fullmatch(key) else None


def _key(digest: str, kind: Kind) -> str:
    match = _LAYER_DIGEST.fullmatch(digest)
    if match is None:
        raise UsageError(f"layer digest {digest!r}: expected sha256: and 64 lower-case hexadecimal digits")
    return f"{match[1]}-v{kind.name_version}"


def disk_bytes(directory: Path) -> int:
    """Bytes that the files below a directory take on disk; what vanishes meanwhile does not count."""
    total = 0
    for path, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total
