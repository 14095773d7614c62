"""Bytecode without docstrings (python -OO) for view and agent: 3 MiB less of a node's memory [measured, 50 layers].

It has a directory of its own in the environment of its release, and goes with that: nothing is written beside Python's
own modules. `python -m agent.bytecode` makes it beforehand; else the first start does, which takes 1 s longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_MODULES = ("agent.app", "agent.api", "agent.mirror.service", "agent.rooted", "fuse.main")


def variables() -> dict[str, str]:
    """For the environment of view and agent. Nothing where the bytecode is not there and cannot be kept: who compiles
    all that it imports starts 1 s later each time, and readers wait."""
    directory = _directory()
    if directory is None:
        return {}
    is_kept = not sys.dont_write_bytecode and os.access(directory.parent, os.W_OK)
    return {"PYTHONOPTIMIZE": "2", "PYTHONPYCACHEPREFIX": str(directory)} if is_kept or directory.exists() else {}


def main() -> int:
    """Make it, by importing all of it, whatever PYTHONDONTWRITEBYTECODE says."""
    directory = _directory()
    if directory is None:
        print(
            f"agent.bytecode: expected the Python of a virtual environment, this is {sys.executable}", file=sys.stderr
        )
        return 1
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-OO", "-c", f"import {', '.join(_MODULES)}"]
    return subprocess.run(command, env=environment | {"PYTHONPYCACHEPREFIX": str(directory)}, check=False).returncode


def _directory() -> Path | None:
    """None outside of a virtual environment: other programs' Python is not ours to add to."""
    return None if sys.prefix == sys.base_prefix else Path(os.path.realpath(sys.prefix), "bytecode")


if __name__ == "__main__":
    sys.exit(main())
