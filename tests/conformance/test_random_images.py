"""Random images, layers over layers, show what containerd's own unpacking shows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from image_comparison import compare
from image_machine import ImageMachine
from unpackers import Unpacker


@pytest.mark.timeout(0)
def test_random_images_equal_containerds(
    containerds: list[Unpacker], matrix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--matrix full`: 500, others at each run; hypothesis prints how to build one again that differs."""
    is_full = matrix == "full"
    seen: Counter[str] = Counter()

    def check(layers: list[bytes]) -> None:
        """Layers that are not taken are left out, for the rest to be compared."""
        while layers and (outcome := compare(layers, containerds)).layer is not None:
            seen[f"{outcome.kind} layers"] += 1
            del layers[outcome.layer]
        seen["equal images"] += 1
        seen["their layers"] += len(layers)

    run_state_machine_as_test(
        lambda: ImageMachine(check),
        settings=settings(
            max_examples=500 if is_full else 15,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=not is_full,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        print(f"\nrandom images: {dict(seen)}")
    assert seen["their layers"] > seen["refused layers"] + seen["declined layers"]
