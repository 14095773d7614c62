"""What a pack is made of, and what it is called before its pack id is known."""

from __future__ import annotations

import enum

from imgdist.pack import CHUNK_MAX, FORMAT_VERSION

RAW_NAMES_FROM = 10_000
"""Raw packs' format versions are written from here on in names, so that they are names to every release's grammar."""


class Kind(enum.Enum):
    """The kinds of packs; the value begins the index."""

    LAYER = b"IDX"
    """A layer image: files, then metadata, cut at file starts."""
    RAW = b"RAW"
    """A blob as the registry has it, from byte 4096 of the image on: cut each `CHUNK_MAX` bytes, the last chunk padded
    with zeros to whole blocks."""

    @property
    def name_version(self) -> int:
        """The number behind `-v` in the names of such packs."""
        return FORMAT_VERSION + (RAW_NAMES_FROM if self is Kind.RAW else 0)


def early_name(digest: str, kind: Kind = Kind.LAYER) -> str:
    """What the wire calls the pack of a layer or blob (`sha256:<hex>`) before its seal: `sha256-<hex>-v<number>`."""
    return f"{digest.replace(':', '-', 1)}-v{kind.name_version}"


def raw_chunks(size_bytes: int) -> int:
    """How many chunks the raw pack of a blob has."""
    return -(-size_bytes // CHUNK_MAX)
