"""The update of a node to a patch release: what of it is not fetched again, and the time that this saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from imgdist.demo.image import Image
from imgdist.demo.recipe import BEFORE, LATEST
from imgdist.demo.stack import Pushed, Stack
from imgdist.demo.start import Start


@dataclass(frozen=True)
class Update:
    """A start on a node that has the release before, and the same on a fresh node, both until all is on the disk."""

    start: Start
    fresh: Start
    layers: int
    new_layers: int

    @property
    def spared_bytes(self) -> int:
        """Chunks that the fresh node fetched and this one had, as they travel, bodies alone."""
        return self.fresh.fetched_bytes - self.start.fetched_bytes

    def notes(self) -> list[str]:
        """What the starts' picture does not say, in sentences."""
        share = self.spared_bytes / self.fresh.fetched_bytes
        return [
            f"update: a node that has release {BEFORE.name} starts {LATEST.name}, of whose {self.layers} layers "
            f"{self.new_layers} are new ({LATEST.brings})",
            f"update, not fetched again: {self.spared_bytes / 1e6:.1f} of {self.fresh.fetched_bytes / 1e6:.1f} MB of "
            f"chunks ({share:.0%}): the node had them ({self.start.copied_bytes / 1e6:.0f} MB raw, copied on its disk)",
            "update, saved against a fresh node (imgdist): "
            f"{_saved(self.fresh.first_output_s, self.start.first_output_s)} to the first output, "
            f"{_saved(_filled_s(self.fresh), _filled_s(self.start))} until all is there",
        ]

    def as_json(self) -> dict[str, Any]:
        """`update` of `imgdist demo --json`: seconds from the start of the pull, bytes of chunks as they travel."""
        return {
            "seconds": round(self.start.seconds, 3),
            "filled_seconds": round(_filled_s(self.start), 3),
            "fresh_seconds": round(self.fresh.seconds, 3),
            "fresh_filled_seconds": round(_filled_s(self.fresh), 3),
            "fetched_bytes": self.start.fetched_bytes,
            "fresh_fetched_bytes": self.fresh.fetched_bytes,
            "copied_raw_bytes": self.start.copied_bytes,
            "new_layers": self.new_layers,
        }


def measured(
    stack: Stack,
    images: tuple[Image, Image],
    pushed: Pushed,
    argv: Sequence[str],
    fresh: Start,
    progress: Callable[[str], None],
) -> Update:
    """A node starts the first of the `images` and gets all of it; then it starts the second one, which is `pushed`, as
    `fresh` was measured."""
    before, image = images
    progress(f"preheating the supernode with release {BEFORE.name}, the one before")
    old = stack.push(before, "before")
    stack.preheat(old)
    progress(f"imgdist, update: a node that has release {BEFORE.name}")
    with stack.node() as node:
        agent, containerd = node
        containerd.pull(old.reference)
        containerd.run(old.reference, "before", *argv)
        agent.wait_complete()
        start = stack.start_on(node, "imgdist, update", pushed, argv, filled=True)
    return Update(start, fresh, len(image.layers), len(set(image.layers) - set(before.layers)))


def _filled_s(start: Start) -> float:
    assert start.filled_s is not None
    return start.filled_s


def _saved(fresh_s: float, update_s: float) -> str:
    return f"{fresh_s - update_s:.2f} s ({update_s:.2f} instead of {fresh_s:.2f})"
