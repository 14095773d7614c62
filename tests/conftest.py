"""Makes `tests/` importable for the suites below it, and fails a test that leaves anything behind on the machine."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import leaks

_DIRECTORY = pytest.StashKey[Path]()
_OWN_MOUNTS = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--matrix", choices=("quick", "full"), default="quick", help="how much of what takes minutes is run"
    )
    group.addoption("--soak", type=float, default=6.0, metavar="SECONDS", help="how long the soak lasts")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `full` are chosen by `--matrix full` alone."""
    if config.getoption("matrix") == "full":
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture
def matrix(pytestconfig: pytest.Config) -> str:
    """How many deaths: "quick" or "full"."""
    return str(pytestconfig.getoption("matrix"))


def pytest_configure(config: pytest.Config) -> None:
    """One short directory for all temporary files (a socket's path has 108 bytes), one mark for all processes."""
    directory = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    config.stash[_DIRECTORY] = directory
    config.stash[_OWN_MOUNTS] = os.getuid() == 0 and leaks.own_mount_namespace()
    tempfile.tempdir = str(directory)
    if config.option.basetemp is None:
        config.option.basetemp = directory / "p"
    os.environ[leaks.MARK] = directory.name


def pytest_unconfigure(config: pytest.Config) -> None:
    directory = config.stash.get(_DIRECTORY, None)
    if directory is None:
        return
    mounts = Path("/proc/self/mounts").read_text()
    if f" {directory}/" not in mounts:  # never reach through a leaked mount
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_by_session(pytestconfig: pytest.Config) -> Iterator[None]:
    yield from _check(pytestconfig, "the session", shared=False)


@pytest.fixture(autouse=True)
def _nothing_left_by_test(pytestconfig: pytest.Config, _nothing_left_by_session: None) -> Iterator[None]:
    yield from _check(pytestconfig, "the test", shared=True)


def _check(config: pytest.Config, who: str, shared: bool) -> Iterator[None]:
    directory, all_mounts = config.stash[_DIRECTORY], config.stash[_OWN_MOUNTS]

    def take() -> leaks.Inventory:
        return leaks.inventory(directory, all_mounts=all_mounts)

    before = take()
    yield
    left = leaks.left_over(before, take, shared)
    assert not left, f"{who} left behind:\n" + "\n".join(left)
