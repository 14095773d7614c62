"""What one layer may cost to convert. Beyond any of these a layer is declined, before the memory or disk is gone.

containerd itself has none of them but `header_bytes`. All but `memory_bytes` and `cpu_s` count what is in the layer, so
that a layer is declined on every machine or on none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one conversion, in bytes unless named otherwise. Why each is what it is: docs/limits.md."""

    tar_bytes: int = 256 << 30
    """The uncompressed layer."""
    image_bytes: int = 256 << 30
    """The layer image."""
    free_bytes: int = 1 << 30
    """Below this much tar its ratio to the compressed layer does not matter."""
    expansion: int = 200
    """Bytes of tar a byte of compressed layer, beyond `free_bytes`. gzip reaches 1,032 and zstd 32,000 on zeros."""
    hole_bytes: int = 64 << 30
    """All holes of sparse members, which cost nothing to declare."""
    header_bytes: int = 1 << 20
    """One pax or GNU extension header, and one sparse map."""
    members: int = 1_000_000
    """Members of the tar."""
    records: int = 1_500_000
    """Extension headers, pax records and segments of sparse members, all; and as many zstd frames and blocks."""
    metadata_bytes: int = 160 << 20
    """Memory for the file tree: names, paths of directories, symlink targets, small files, xattrs and their keeping."""
    implied_bytes: int = 16 << 20
    """Paths of directories that are only implied: they stand in the index, which every node loads."""
    link_steps: int = 5_000_000
    """Path components looked up because of symlinks or of directories that are not there yet, over the whole layer."""
    memory_bytes: int = 256 << 20
    """Private memory of the worker, with two threads; each further one may take 16 MiB more."""
    cpu_s: int = 30
    """CPU-seconds of the worker, and `convert.level` more for each MiB of compressed layer."""


DEFAULT_LIMITS = Limits()
