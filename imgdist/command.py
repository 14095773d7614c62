"""The command `imgdist`, for whoever is to run it later: a service manager, a process that outlives an upgrade."""

from __future__ import annotations

import os
import sys


def installed() -> list[str]:
    """Words that run `imgdist`, by the path by which this process was called: through a symlink that names the release
    in use (/opt/imgdist), where sys.executable would name the release itself. Else this interpreter and our module."""
    called = os.path.abspath(sys.argv[0])
    if os.path.basename(called) == "imgdist" and os.access(called, os.X_OK):
        return [called]
    return [sys.executable, "-m", "imgdist.cli"]
