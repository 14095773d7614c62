"""Where the demo keeps what is expensive to make: the image, and containerd 2.x built from its Go module."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """IMGDIST_CACHE, else XDG_CACHE_HOME/imgdist, else ~/.cache/imgdist; made if missing. scripts/parts agrees."""
    if own := os.environ.get("IMGDIST_CACHE"):
        directory = Path(own)
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgdist"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
