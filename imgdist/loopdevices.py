"""Which loop devices are in use, and what they show, as sysfs says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Loop:
    """A loop device: its number and the file that it shows, as the kernel names it now, " (deleted)" at the end if it
    is gone."""

    number: int
    backing_file: str

    @property
    def path(self) -> str:
        """Of the device."""
        return f"/dev/loop{self.number}"

    @property
    def file(self) -> str:
        """Where the file is, or was."""
        return self.backing_file.removesuffix(" (deleted)")


def devices() -> Iterator[Loop]:
    """Every loop device in use."""
    for entry in Path("/sys/block").glob("loop*"):
        try:
            backing_file = (entry / "loop" / "backing_file").read_text(errors="surrogateescape").rstrip("\n")
        except OSError:
            continue  # not in use
        yield Loop(int(entry.name.removeprefix("loop")), backing_file)
