"""What a test needs of the machine: present, or a skip with the reason (in CI: a failure)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def require(condition: object, what: str) -> None:
    """Go on if `condition` holds; else skip naming `what`, or fail where CI=true (there nothing may be missing)."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}, which CI must install")
    pytest.skip(f"needs {what}")


def require_lazy_layers(*programs: str) -> None:
    """What an agent needs to show layers that are not here yet, and these programs."""
    require(os.geteuid() == 0, "root")
    require(Path("/dev/fuse").exists() and Path("/dev/loop-control").exists(), "FUSE and loop devices")
    require("\terofs" in Path("/proc/filesystems").read_text(), "EROFS in the kernel")
    for program in programs:
        require(shutil.which(program), program)
