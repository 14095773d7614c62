"""Images of odd layers show a container what containerd's own unpacking shows it, or are left to containerd."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from integration.rig import tree
from lazy_images import Declined, shown
from odd_images import ACCEPTED, DECLINED, IMAGES
from unpackers import Refused, Unpacker


@pytest.mark.parametrize("name", IMAGES)
def test_odd_image_equals_containerds(name: str, containerds: list[Unpacker]) -> None:
    if name in ACCEPTED:
        with shown(IMAGES[name]) as found:
            assert len(tree.read(found.root)) > 1
    else:
        assert_equal(IMAGES[name], containerds, may_decline=name in DECLINED)


def assert_equal(layers: Sequence[bytes], containerds: list[Unpacker], *, may_decline: bool = False) -> None:
    """Compare what a container sees, by every containerd; what is declined, containerd refuses, unless said."""
    ours: dict[str, tree.Entry] | Declined
    exempt: set[str] = set()
    try:
        with shown(layers) as found:
            ours, exempt = tree.read(found.root), found.times_exempt
    except Declined as declined:
        ours = declined
    for containerd in containerds:
        try:
            with containerd.shown(layers) as root:
                theirs = tree.read(root)
        except Refused as refused:
            assert isinstance(ours, Declined), f"we take what containerd {containerd.version} refuses: {refused}"
            continue
        if isinstance(ours, Declined):
            assert may_decline, f"we refuse what containerd {containerd.version} takes: {ours}"
            continue
        assert not may_decline, "it is not declined any more: not among DECLINED, then"
        assert tree.differences(ours, theirs, exempt) == [], containerd.version
