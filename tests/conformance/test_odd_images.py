"""Images of odd layers show a container what containerd's own unpacking shows it, or are left to containerd."""

from __future__ import annotations

import pytest
from image_comparison import compare
from integration.rig import tree
from lazy_images import Declined, shown
from odd_images import ACCEPTED, DECLINED, IMAGES
from raw_tar import header
from unpackers import Unpacker


@pytest.mark.parametrize("name", sorted(IMAGES.keys() - ACCEPTED.keys()))
def test_odd_image_equals_containerds(name: str, containerds: list[Unpacker]) -> None:
    outcome = compare(IMAGES[name], containerds)
    assert (outcome.kind == "declined") == (name in DECLINED), outcome


@pytest.mark.parametrize("name", ACCEPTED)
def test_image_that_these_containerds_refuse(name: str) -> None:
    with shown(IMAGES[name]) as found:
        assert len(tree.read(found.root)) > 1


@pytest.mark.parametrize("kind", [b"3", b"4", b"6"])
@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_device_number_beyond_32_bits_is_declined(kind: bytes, number: int) -> None:
    """containerd 2.4 refuses it; 1.6 takes the lower bits, and is left to do so."""
    with pytest.raises(Declined, match="beyond 32 bits"), shown([header(b"c", kind, major=number)]):
        pass
