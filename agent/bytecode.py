"""Bytecode without docstrings (python -OO) for view and agent: 3 MiB less of a node's memory [measured, 50 layers].

It has a directory of its own in the environment of its release, and goes with that: nothing is written beside Python's
own modules. `python -OO -m agent.bytecode` makes it beforehand; else the first start does, which takes 1 s longer.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

_MODULES = ("agent.app", "agent.api", "agent.mirror.service", "agent.rooted", "fuse.main")


def variables() -> dict[str, str]:
    """For the environment of view and agent. Nothing where the bytecode is not there and cannot be kept: who compiles
    all that it imports starts 2 s later each time, and readers wait."""
    directory = _directory()
    if directory is None:
        return {}
    is_kept = not sys.dont_write_bytecode and os.access(directory.parent, os.W_OK)
    return {"PYTHONOPTIMIZE": "2", "PYTHONPYCACHEPREFIX": str(directory)} if is_kept or directory.exists() else {}


def main() -> int:
    """Make it, by importing all of it, whatever PYTHONDONTWRITEBYTECODE says."""
    directory = _directory()
    if directory is None or sys.flags.optimize != 2:
        print("agent.bytecode: expected python -OO of a virtual environment", file=sys.stderr)
        return 1
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(directory)
    for name in _MODULES:
        importlib.import_module(name)
    return 0


def _directory() -> Path | None:
    """None outside of a virtual environment: other programs' Python is not ours to add to."""
    return None if sys.prefix == sys.base_prefix else Path(os.path.realpath(sys.prefix), "bytecode")


if __name__ == "__main__":
    sys.exit(main())
