"""Which mounts containerd is told to make. Pure; the same as its own overlayfs snapshotter returns, for any chain.

Source: containerd plugins/snapshots/overlay/overlay.go `mounts`. One thing is added: `xino=on` where lower
directories are file systems of their own. Without it st_dev differs per layer and `du -x` counts one layer only
(measured: 1 MB instead of 606).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.snapshotter.model import Kind, Mount

XINO = "xino=on"


@dataclass(frozen=True)
class Place:
    """Where an active snapshot or a view keeps what is its own."""

    upper: str
    work: str


def mounts(
    kind: Kind,
    place: Place,
    lowers: Sequence[str],
    *,
    separate_file_systems: bool,
    overlay_options: Sequence[str] = (),
    id_mapping: Sequence[str] = (),
) -> list[Mount]:
    """Mounts of an active snapshot or a view over `lowers`, top first.

    No parent: a bind of its own directory. A view of one directory: a read-only bind of that one. Else overlayfs.
    `id_mapping` (`labels.id_mapping`) is for containerd itself, which maps the lower directories before it mounts.
    """
    writable = kind == Kind.ACTIVE
    if not lowers:
        return [Mount("bind", place.upper, (*id_mapping, "rw" if writable else "ro", "rbind"))]
    if not writable and len(lowers) == 1:
        return [Mount("bind", lowers[0], (*id_mapping, "ro", "rbind"))]
    options = [*id_mapping]
    if writable:
        options += [f"workdir={place.work}", f"upperdir={place.upper}"]
    options.append("lowerdir=" + ":".join(lowers))
    options.extend(overlay_options)
    if separate_file_systems:
        options.append(XINO)
    return [Mount("overlay", "overlay", tuple(options))]
