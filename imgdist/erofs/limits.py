"""What one layer may cost to convert. Beyond any of these a layer is declined, before the memory or disk is gone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one conversion, in bytes unless named otherwise.

    `header_bytes`: one pax or GNU extension header, and one sparse map (Go's tar reader has the same 1 MiB).
    `members`: members of the tar. `tar_bytes`: the uncompressed layer. `image_bytes`: the layer image.
    `hole_bytes`: all holes of sparse members, which cost an attacker nothing to declare.
    `metadata_bytes`: names, paths of directories, symlink targets, small files and xattrs, all held in memory.
    `link_steps`: path components looked up behind symlinks, over the whole layer.
    """

    header_bytes: int = 1 << 20
    members: int = 2_000_000
    tar_bytes: int = 256 << 30
    image_bytes: int = 256 << 30
    hole_bytes: int = 64 << 30
    metadata_bytes: int = 1 << 30
    link_steps: int = 50_000_000


DEFAULT_LIMITS = Limits()
