"""Layers to packs: gunzip or unzstd, tar to EROFS, chunks hashed and encoded, all while the layer downloads."""

from __future__ import annotations

from supernode.convert.conversion import Conversion, Progress, Result

__all__ = ["Conversion", "Progress", "Result"]
