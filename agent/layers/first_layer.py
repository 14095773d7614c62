"""Whether a layer can be an image's first one.

Below a first layer there is nothing to hide, and containerd unpacks it in another way than those above it: a whiteout
removes what the layer itself has put there by then, an opaque marker the directories that the layer only implies. In a
layer image they are overlayfs' whiteouts, of which a directory that is not merged would still show the names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from imgdist.errors import DeclinedError

_OPAQUE = "trusted.overlay.opaque"


def check(layer: str, implied: Iterable[bytes]) -> None:
    """Look for whiteouts in the layer mounted at `layer`, and for opaque directories around those that it implies.

    Raises:
        DeclinedError: there is one, and containerd alone can unpack this layer as the first of an image.
        OSError: a directory cannot be read.
    """
    root = os.fsencode(layer)
    paths = (path.removesuffix(b"/") for path in implied)
    found = _whiteout(root) or next((os.path.join(root, path) for path in paths if _is_in_opaque(root, path)), None)
    if found is not None:
        raise DeclinedError(
            f"layer: the first layer of an image hides {os.path.relpath(found, root)[:200]!r}, which may be its own:"
            " only unpacking it tells"
        )


def _whiteout(directory: bytes) -> bytes | None:
    """The first character device 0:0 in or below the directory."""
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 and not stat.S_IMODE(status.st_mode):
                        return entry.path
    return None


def _is_in_opaque(root: bytes, path: bytes) -> bool:
    while path := os.path.dirname(path):
        if _OPAQUE in os.listxattr(os.path.join(root, path)):
            return True
    return False
