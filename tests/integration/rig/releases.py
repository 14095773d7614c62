"""Releases of imgdist beside each other, as environments of their own are: copies of this tree, changed at will."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rig.local_agent import LocalAgent

_TOP = Path(__file__).parents[3]
_ROOMS = ("imgdist", "supernode", "agent", "fuse")


@dataclass(frozen=True)
class Release:
    """`directory` holds the packages."""

    directory: Path
    version: str

    @property
    def environment(self) -> dict[str, str]:
        """That of an installation: its own code, wherever it is called."""
        return {**os.environ, "PYTHONPATH": str(self.directory), "PYTHONSAFEPATH": "1"}

    def imgdist(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run this release's command line."""
        argv = [sys.executable, "-m", "imgdist.cli", *words]
        return subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL
        )

    def broken(self, file: str, before: str, code: str) -> None:
        """Put `code` in front of the line `before` of `file`."""
        path = self.directory / file
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, f"{code}\n{before}", 1), encoding="utf-8")


def release(directory: Path, version: str) -> Release:
    """A copy of the tree that says it is `version`."""
    for room in _ROOMS:
        shutil.copytree(_TOP / room, directory / room)
    init = directory / "imgdist/__init__.py"
    text, found, _ = init.read_text(encoding="utf-8").partition("__version__")
    assert found
    init.write_text(f'{text}__version__ = "{version}"\n', encoding="utf-8")
    return Release(directory, version)


class UpgradedAgent(LocalAgent):
    """An agent that is started as one release and becomes others."""

    def begin(self, started: Release, *flags: str) -> None:
        """As `start`."""
        self.environment = started.environment
        self.start(*flags)

    def upgrade(self, to: Release) -> subprocess.CompletedProcess[str]:
        """`imgdist upgrade` of that release."""
        return to.imgdist("upgrade", "--run", str(self.run))

    def version(self) -> str:
        """What the agent says it is."""
        return str(self.json("status")["version"])

    def commands(self) -> list[bytes]:
        """Command lines and environments of holder and children."""
        return [
            Path(f"/proc/{pid}/{what}").read_bytes()
            for pid in (self.pid, *self.children())
            for what in ("cmdline", "environ")
        ]
