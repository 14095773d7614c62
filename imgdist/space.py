"""How full a file system may become, and why a pack stays: what agent and supernode share when space is short."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system, in bytes. What only root may still write counts as used, as the kubelet counts it."""

    total_bytes: int
    available_bytes: int

    @property
    def used_bytes(self) -> int:
        """What is taken."""
        return self.total_bytes - self.available_bytes


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Above `high` (a share of the file system) things go until `low`; what is ours takes at most `max_bytes` (0: no
    limit)."""

    high: float
    low: float
    max_bytes: int = 0

    def excess_bytes(self, disk: Disk, own_bytes: int) -> int:
        """How much has to go for them to hold; 0: nothing."""
        above = 0
        if disk.used_bytes > self.high * disk.total_bytes:
            above = disk.used_bytes - int(self.low * disk.total_bytes)
        beyond = own_bytes - self.max_bytes if self.max_bytes else 0
        return max(above, beyond, 0)


@dataclass(frozen=True, slots=True)
class Kept:
    """A pack that stays, and why."""

    pack_id: str
    size_bytes: int
    why: str


def too_young(used_at: float, now: float, least_age_s: float) -> str:
    """Why a pack that was used then (seconds since 1970) stays for its age; "" if it need not. A clock that was set
    back makes it young."""
    age_s = max(0.0, now - used_at)
    return f"used {age_s:.0f} s ago, kept for {least_age_s:.0f} s" if age_s < least_age_s else ""


def disk_of(path: Path) -> Disk:
    """The file system that `path` lies on (statvfs(3))."""
    status = os.statvfs(path)
    return Disk(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
