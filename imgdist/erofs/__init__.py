"""Layer images: an OCI layer's tar, streamed into an EROFS file-system image."""

from __future__ import annotations

from imgdist.erofs.writer import LayerSummary, LayerWriter
from imgdist.limits import DEFAULT_LIMITS, Limits

__all__ = ["DEFAULT_LIMITS", "LayerSummary", "LayerWriter", "Limits"]
