"""How layers become packs, and what one layer may cost."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from imgdist.limits import DEFAULT_LIMITS, Limits


class ConvertConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How layers become packs at a supernode."""

    threads: Annotated[int, Meta(ge=1, le=64, description="compression threads of one layer's conversion")] = 2
    layers: Annotated[int, Meta(ge=1, le=64, description="layers downloaded and converted at the same time")] = 3
    level: Annotated[int, Meta(ge=1, le=19, description="zstd level of chunks while a node waits")] = 1
    keep_blobs: Annotated[
        bool,
        Meta(description="also keep layers as the registry has them, so that pulls do not read them again"),
    ] = True


class LimitsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What one layer may cost to convert; beyond it, containerd pulls the layer the ordinary way. docs/limits.md says
    why each is what it is."""

    tar_bytes: Annotated[int, Meta(ge=1, description="bytes of the uncompressed layer")] = DEFAULT_LIMITS.tar_bytes
    image_bytes: Annotated[int, Meta(ge=1, description="bytes of the layer image")] = DEFAULT_LIMITS.image_bytes
    free_bytes: Annotated[int, Meta(ge=0, description="bytes of tar below which `expansion` does not matter")] = (
        DEFAULT_LIMITS.free_bytes
    )
    expansion: Annotated[int, Meta(ge=1, description="bytes of tar a byte of compressed layer")] = (
        DEFAULT_LIMITS.expansion
    )
    hole_bytes: Annotated[int, Meta(ge=0, description="bytes of holes in sparse files")] = DEFAULT_LIMITS.hole_bytes
    header_bytes: Annotated[int, Meta(ge=512, description="bytes of one extension header or sparse map")] = (
        DEFAULT_LIMITS.header_bytes
    )
    members: Annotated[int, Meta(ge=1, description="members of the tar")] = DEFAULT_LIMITS.members
    records: Annotated[
        int, Meta(ge=1, description="extension headers, pax records, sparse segments; zstd frames and blocks")
    ] = DEFAULT_LIMITS.records
    metadata_bytes: Annotated[int, Meta(ge=1, description="bytes of memory for names, small files, xattrs")] = (
        DEFAULT_LIMITS.metadata_bytes
    )
    implied_bytes: Annotated[int, Meta(ge=0, description="bytes of paths of directories that no member describes")] = (
        DEFAULT_LIMITS.implied_bytes
    )
    link_steps: Annotated[int, Meta(ge=1, description="path components looked up behind symlinks")] = (
        DEFAULT_LIMITS.link_steps
    )
    memory_bytes: Annotated[
        int, Meta(ge=64 << 20, description="bytes of memory of the worker; 16 MiB more a thread beyond two")
    ] = DEFAULT_LIMITS.memory_bytes
    cpu_s: Annotated[
        int, Meta(ge=1, description="CPU-seconds of the worker, and `convert.level` more a MiB of layer")
    ] = DEFAULT_LIMITS.cpu_s

    def limits(self) -> Limits:
        """As the converter takes them."""
        return Limits(**msgspec.structs.asdict(self))
