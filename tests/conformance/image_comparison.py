"""What a container sees of an image with this project and with containerd's own unpacking, held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from integration.rig import tree
from lazy_images import Declined, shown
from unpackers import Refused, Unpacker


@dataclass(frozen=True)
class Outcome:
    """Shown and the same everywhere; or `layer` (counted from 0) is taken by nobody, or left to containerd, which takes
    it."""

    kind: Literal["equal", "refused", "declined"]
    layer: int | None = None


UNKNOWABLE = (
    "has a default ACL in the layers below",
    "and has an ACL or is set-group-id below",
    "the first layer of an image hides",
    "it makes the root opaque",
    "comes after its file or twice",
    "is replaced after something was put into it",
)
"""Reasons, as said, to leave a layer to containerd that takes it: what one layer does not tell."""


def compare(layers: Sequence[bytes], containerds: Sequence[Unpacker]) -> Outcome:
    """Fails where an image of these layers (tars, compressed or not) differs, or is declined without need."""
    exempt: set[str] = set()
    ours: dict[str, tree.Entry] | Declined
    try:
        with shown(layers) as found:
            ours, exempt = tree.read(found.root), found.times_exempt
    except Declined as declined:
        ours = declined
    outcomes = {_compared(ours, exempt, layers, containerd) for containerd in containerds}
    assert len(outcomes) == 1, f"containerds differ: {outcomes}"
    return outcomes.pop()


def _compared(
    ours: dict[str, tree.Entry] | Declined, exempt: set[str], layers: Sequence[bytes], containerd: Unpacker
) -> Outcome:
    try:
        with containerd.shown(layers) as root:
            theirs = tree.read(root)
    except Refused as refused:
        assert isinstance(ours, Declined), f"we take what containerd {containerd.version} refuses: {refused}"
        if refused.layer == ours.layer:
            return Outcome("refused", ours.layer)
        assert refused.layer > ours.layer, f"containerd {containerd.version} refuses another layer: {refused}, {ours}"
    if isinstance(ours, Declined):
        needed = any(reason in ours.reason for reason in UNKNOWABLE)
        assert needed, f"we decline what containerd {containerd.version} takes: {ours}"
        return Outcome("declined", ours.layer)
    different = tree.differences(ours, theirs, exempt)
    assert not different, f"{len(different)} differences from containerd {containerd.version}:\n" + "\n".join(different)
    return Outcome("equal")
