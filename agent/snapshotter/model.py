"""The words of the snapshotter: kinds, what is known of a snapshot, mounts, errors, and what it asks of layers."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.snapshotter.labels import LayerSource
from imgdist.errors import ImgdistError


class AlreadyExistsError(ImgdistError):
    """The key or name is taken, or (for a layer's Prepare) the layer is here and needs no unpacking."""


class PreconditionError(ImgdistError):
    """The snapshot is not in the state that this call needs (has children, is committed, is not active)."""


class Kind(enum.IntEnum):
    """Kinds of snapshots; the numbers are those of the wire (snapshots.proto)."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True)
class Info:
    """What Stat and List say of a snapshot. Times are nanoseconds since 1970."""

    name: str
    parent: str
    kind: Kind
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def value(self, path: tuple[str, ...]) -> str | None:
        """The field at a filter's path, None where there is none (containerd core/snapshots/storage)."""
        if path[0] == "labels":
            return self.labels.get(".".join(path[1:]))
        return {"name": self.name, "parent": self.parent, "kind": self.kind.name.lower()}.get(path[0])


@dataclass(frozen=True)
class Usage:
    """Local disk space of one snapshot without its parents: allocated bytes (st_blocks x 512) and inodes."""

    size_bytes: int = 0
    inodes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.size_bytes + other.size_bytes, self.inodes + other.inodes)


@dataclass(frozen=True)
class Mount:
    """One mount for containerd to do: as in fstab, without a target."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class LayerRequest:
    """A layer that containerd is about to unpack, and all that is known to find it by."""

    chain_id: str
    parent_chain_id: str | None
    diff_id: str | None
    source: LayerSource | None
    labels: Mapping[str, str]


@dataclass(frozen=True)
class TakenLayer:
    """A layer that is mounted, or can be at any time: its pack and what the pack's index says of it."""

    pack_id: str
    diff_id: str
    implied_directories: tuple[bytes, ...] = ()
    hides: bytes = b""


class Layers(Protocol):
    """What the snapshotter asks of the layers of this node. All calls come from the event loop.

    `ensure_mounted` and `release` of one pack never run at the same time (several snapshotters over the same layers
    share packs.Sharing); `take_over` may run beside anything. Every call is idempotent. What is mounted at a start and
    not among any snapshotter's `packs_in_use` is left over from a crash.
    """

    async def take_over(self, request: LayerRequest) -> TakenLayer:
        """Find the layer, make it mountable, return it. DeclinedError: containerd shall pull it the ordinary way.

        Any other error counts as a decline too, and is logged. Cancelled when the client goes or time is up.
        """
        ...

    def above(self, request: LayerRequest, at_most: int) -> Sequence[tuple[str, TakenLayer]]:
        """Chain IDs and layers of what the request's image has above the layer that is asked for, from there up, as far
        as each is mounted by now: the client will ask for them next."""
        ...

    async def ensure_mounted(self, pack_id: str) -> str:
        """The directory where the layer is mounted, mounting it if it is not; its name is short (128 of them fit
        into one page of mount options) and stays the same. Fast where it is mounted already."""
        ...

    async def settle(self, pack_ids: Sequence[str]) -> None:
        """Make packs durable that are mounted: a snapshot is about to name them, and must find them after a power cut.
        Fast where they are."""
        ...

    def mounted_at(self, pack_id: str) -> str | None:
        """What `ensure_mounted` would return, if neither it nor `settle` has anything to do; an image of 128 layers
        asks for each layer below each of them."""
        ...

    async def implied_directories(self, pack_id: str) -> Sequence[bytes]:
        """Directories that the layer implies, as `fixup.plan` takes them. NotFoundError."""
        ...

    async def starting(self, pack_ids: Sequence[str]) -> None:
        """A container is being created over these packs, top first: what is read from them now is its start."""
        ...

    async def usage(self, pack_id: str) -> Usage:
        """Local disk space of the pack."""
        ...

    async def release(self, pack_id: str) -> None:
        """No snapshot uses the pack any more: unmount it (its bytes may stay as cache). BusyError says who holds it;
        the call is repeated later. An unknown pack is no error."""
        ...
