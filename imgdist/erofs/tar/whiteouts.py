"""OCI whiteouts (image-spec, layer.md, "Whiteouts"): what a member's base name says about the layers below."""

from __future__ import annotations

from imgdist.errors import DeclinedError

PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"


def hidden_name(base: bytes) -> bytes | None:
    """Return the name that `base`, which starts with `.wh.`, hides; None if it makes its directory opaque.

    As in containerd, `.wh..wh.aufs` hides a file `.wh.aufs`; there are no other special names.

    Raises:
        DeclinedError: the whiteout would hide its own directory or the one above.
    """
    if base == OPAQUE_MARKER:
        return None
    name = base[len(PREFIX) :]
    if name in (b"", b".", b".."):
        raise DeclinedError(f"layer: whiteout {base!r} names no file, as containerd refuses")
    return name
