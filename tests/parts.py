"""What a test needs of the machine: present, or a skip with the reason (in CI: a failure)."""

from __future__ import annotations

import os

import pytest


def require(condition: object, what: str) -> None:
    """Go on if `condition` holds; else skip naming `what`, or fail where CI=true (there nothing may be missing)."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}, which CI must install")
    pytest.skip(f"needs {what}")
