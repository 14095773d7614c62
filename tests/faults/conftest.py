"""One site for the deaths of a module. Daemons start as an installed release does: with compiled code, which the
environment of a test may forbid."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from faults.node import Site, site


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the compiled code is."""
    return os.fspath(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(autouse=True, scope="module")
def _compiled(compiled: str) -> Iterator[None]:
    # For these modules alone: one cache for two releases behind one path would give the second the first one's code.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", compiled)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _compiled: None) -> Iterator[Site]:
    """A supernode that has an image of two layers of 64 MiB."""
    with site(tmp_path_factory.mktemp("s"), layers=2, layer_blocks=16384) as running:
        yield running
