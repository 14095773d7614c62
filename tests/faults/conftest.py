"""One site for all deaths. Daemons start as an installed release does: with compiled code, which the environment of a
test may forbid."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from faults.node import Site, site


@pytest.fixture(autouse=True, scope="session")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", os.fspath(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, _compiled: None) -> Iterator[Site]:
    """A supernode that has an image of two layers of 64 MiB."""
    with site(tmp_path_factory.mktemp("s"), layers=2, layer_blocks=16384) as running:
        yield running
