"""Packs: a layer image as a sequence of verified chunks, and the index that names them."""

from __future__ import annotations

BLOCK = 4096
"""Bytes of a block: the unit of EROFS, of the present map and of a chunk's size."""

CHUNK_MAX = 256 * 1024
"""Most bytes of a chunk, uncompressed. Measured: 64 KiB pieces save 10-18 % of a start's bytes, but share less
between versions and cost more requests; above 512 KiB a miss waits longer for the link than for anything else."""

FORMAT_VERSION = 0
"""Version of the layer image and index format; 0 until it is declared stable."""
