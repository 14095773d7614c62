"""The watermarks that both daemons hold their disk against, each with defaults of its own (imgdist.space)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

High = Annotated[
    float, Meta(gt=0, le=1, description="share of the file system in use above which what nothing uses goes")
]
Low = Annotated[float, Meta(ge=0, lt=1, description="share of the file system in use at which that ends")]
MaxBytes = Annotated[int, Meta(ge=0, description="most bytes of all packs together; 0: no limit but the shares")]
