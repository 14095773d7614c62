"""What the conformance suites share: the containerds of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unpackers import Unpacker, unpackers


@pytest.fixture(scope="session")
def containerds() -> Iterator[list[Unpacker]]:
    """Every containerd of this machine, to unpack layers with."""
    with tempfile.TemporaryDirectory(prefix="c") as directory, unpackers(Path(directory)) as running:
        yield running
