"""What unit tests share."""

from __future__ import annotations

import pytest
from clock import Clock


@pytest.fixture
def clock() -> Clock:
    """One that a test moves."""
    return Clock()
