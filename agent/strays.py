"""What a start finds in the kernel that no layer of this node accounts for: mounts and loop devices of layers whose
packs are gone, or that a crash or somebody's hand has left. Looked at once, beside serving."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.layers import loop, mount
from imgdist import loopdevices, mountinfo
from imgdist.errors import ImgdistError

log = logging.getLogger("imgdist.agent")


class Strays:
    """Of one agent. `known` tells the names of its layers' mounts (`LayerStore.name`)."""

    def __init__(self, root: Path, view: Path, known: Callable[[], Iterable[str]]) -> None:
        """`root` is the agent's, `view` its view's mount point."""
        self._mounts = Path(os.path.realpath(root / "l"))
        # The view itself is not looked at: that could wait for it.
        self._shown = (
            os.path.join(os.path.realpath(root / "packs"), ""),
            os.path.join(os.path.realpath(view.parent), view.name, ""),
        )
        self._known = known

    async def release(self) -> None:
        """Unmount and free them. Containers keep their own hold of what they use, whatever is unmounted here."""
        mounted = await asyncio.to_thread(mountinfo.entries)
        known = set(self._known())  # after the look at the mounts: a layer is known before it is mounted
        for entry in mounted:
            path = Path(entry.path)
            if path.parent == self._mounts and path.name not in known:
                await asyncio.to_thread(_unmount, entry.path)
        await asyncio.to_thread(self._free_loops)

    def _free_loops(self) -> None:
        devices = [device for device in loopdevices.devices() if device.backing_file.startswith(self._shown)]
        mounted = {entry.source for entry in mountinfo.entries()}  # after the look at the devices, as above
        for device in devices:
            if device.path not in mounted:
                _free(device)


def _unmount(path: str) -> None:
    try:
        if mount.umount(path):
            log.warning("%s: a layer that this node does not know was mounted there: unmounted", path)
    except ImgdistError as error:
        log.warning("a layer that this node does not know stays mounted: %s", error)


def _free(device: loopdevices.Loop) -> None:
    """One that somebody has open or mounted where we cannot see it goes with its last user, as it would have."""
    try:
        loop.detach(device.path)
    except ImgdistError as error:
        log.warning("%s shows %s to no mount and stays: %s", device.path, device.backing_file, error)
        return
    if device not in loopdevices.devices():
        log.warning("%s showed %s to no mount: freed", device.path, device.backing_file)
