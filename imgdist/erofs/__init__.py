"""Layer images: an OCI layer's tar, streamed into an EROFS file-system image."""

from __future__ import annotations

from imgdist.erofs.limits import DEFAULT_LIMITS, Limits
from imgdist.erofs.writer import LayerSummary, LayerWriter

__all__ = ["DEFAULT_LIMITS", "LayerSummary", "LayerWriter", "Limits"]
