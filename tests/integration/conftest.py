"""What tests of conversions share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from worker_processes import children_of, command_of

from supernode.convert.workers import Workers
from supernode.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store."""
    made = LocalStore(tmp_path / "store")
    made.recover()
    return made


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """Afterwards no process of the test may be left."""
    async with Workers() as made:
        yield made
    assert made.server_pid is None
    left = [child for child in children_of(os.getpid()) if b"supernode.convert" in command_of(child)]
    assert not left, f"conversion processes are left: {left}"
