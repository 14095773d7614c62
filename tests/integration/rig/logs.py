"""What daemons logged, for whoever reads of a test that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LINES = 200
"""Of each log, the last ones."""


@contextmanager
def shown(directory: Path) -> Iterator[None]:
    """Print the logs below `directory` at the end; pytest shows them if the test fails."""
    try:
        yield
    finally:
        for log in sorted(directory.glob("**/*.log")):
            if log.parent.name not in ("logs", "registry"):
                last = log.read_text(errors="replace").splitlines()[-LINES:]
                print(f"--- {log.relative_to(directory)}", *last, sep="\n")
