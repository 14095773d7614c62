"""systemd, where it runs: asked by `systemctl`, and only for this machine's own files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from imgdist.errors import ImgdistError

UNIT = "imgdist-agent.service"
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_TIMEOUT_S = 400.0  # TimeoutStartSec of the unit and some


def runs() -> bool:
    """Whether this machine's service manager is systemd."""
    return _RUNNING.is_dir()


def systemctl(*words: str) -> None:
    """Run one command. ImgdistError with what it said."""
    try:
        done = subprocess.run(
            ["systemctl", *words],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImgdistError(f"systemctl {' '.join(words)}: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().replace(os.linesep, " | ")
        raise ImgdistError(f"systemctl {' '.join(words)}: exit {done.returncode}: {said}")
