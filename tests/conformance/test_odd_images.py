"""Images of odd layers show a container what containerd's own unpacking shows it, or are left to containerd."""

from __future__ import annotations

import pytest
from image_comparison import compare
from integration.rig import tree
from lazy_images import shown
from odd_images import ACCEPTED, DECLINED, IMAGES
from unpackers import Unpacker


@pytest.mark.parametrize("name", sorted(IMAGES.keys() - ACCEPTED.keys()))
def test_odd_image_equals_containerds(name: str, containerds: list[Unpacker]) -> None:
    outcome = compare(IMAGES[name], containerds)
    assert (outcome.kind == "declined") == (name in DECLINED), outcome


@pytest.mark.parametrize("name", ACCEPTED)
def test_image_that_these_containerds_refuse(name: str) -> None:
    with shown(IMAGES[name]) as found:
        assert len(tree.read(found.root)) > 1
