"""Makes the rig of the integration tests importable, and prints at the end what was found out about this kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

_REPORT = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = {}


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Callable[[str, object], None]:
    """Tell a fact about this kernel, `report(what, value)`: a row of the table that scripts/kernels prints."""

    def tell(what: str, value: object) -> None:
        if isinstance(value, bool):
            value = "yes" if value else "no"
        pytestconfig.stash[_REPORT][what] = str(value)

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for what, value in config.stash[_REPORT].items():
        terminalreporter.write_line(f"kernel: {what} = {value}")
