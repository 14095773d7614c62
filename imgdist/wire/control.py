"""What supernode and agent say to each other over HTTP besides chunk bodies: documents, not transport.

JSON, but for traces, which are msgpack. A reader ignores fields that it does not know.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from imgdist.errors import (
    CorruptError,
    DeclinedError,
    DeniedError,
    ImgdistError,
    NotFoundError,
    ProtocolError,
    TemporaryError,
    UnsupportedError,
    UsageError,
)

LayerState = Literal["absent", "converting", "ready", "declined"]

TRACE_ENTRIES_MAX = 65_536
TRACE_LAYERS_MAX = 1_024
"""Layers of a trace; containerd's images have at most some hundred."""


INDEXES_MAX, INDEXES_BYTES = 1_024, 256 << 10
"""Of one answer: 128 small layers have 50 KB of indexes; a large one is read in pieces, as it comes."""


class ResolveRequest(Struct, frozen=True, omit_defaults=True):
    """POST /v1/resolve. `platform` is empty for the supernode's own; `manifest_digest` wins over the reference's
    tag and digest; `convert` starts the conversion of every layer that is not there; `documents` asks for them."""

    reference: str
    platform: str = ""
    manifest_digest: str | None = None
    convert: bool = True
    documents: bool = False


METADATA_BYTES, METADATA_LAYER_BYTES = 1 << 20, 64 << 10
"""Of metadata chunks as they are stored, in one answer and of one layer: those of a layer of 1 MiB take 0.5 KB."""


class IndexesRequest(Struct, frozen=True, omit_defaults=True):
    """POST /v1/indexes: compressed layers by digest, at most `INDEXES_MAX`; `metadata`: with what mounts them."""

    layers: tuple[str, ...]
    metadata: bool = False


class Body(Struct, frozen=True, array_like=True):
    """A chunk of a pack as its holder has it (imgdist.pack.codec)."""

    number: int
    encoding: int
    body: bytes


class Indexes(Struct, frozen=True, omit_defaults=True):
    """The answer, in msgpack: index streams by layer digest, of those that are ready and fit into `INDEXES_BYTES`. The
    others are to be followed one by one. `metadata`: all metadata chunks of some of them, where they were asked for (an
    earlier release gives none), to be verified like any chunk."""

    indexes: dict[str, bytes]
    metadata: dict[str, tuple[Body, ...]] = {}


class Document(Struct, frozen=True):
    """An index, manifest or configuration as its registry has it."""

    media_type: str
    raw: bytes


class Layer(Struct, frozen=True):
    """One layer of a resolved image, lowest first. Sizes in bytes: compressed, and of the layer image once known."""

    digest: str
    media_type: str
    size_bytes: int
    diff_id: str
    chain_id: str
    state: LayerState
    pack_id: str | None = None
    image_bytes: int | None = None
    reason: str | None = None


class Resolution(Struct, frozen=True):
    """One platform's image. `chunks` is the address of the chunk bodies; `trace` says if there is one to fetch; `age_s`
    how long ago the registry confirmed the tag, if it was asked for by one; `documents`, if they were asked for, from
    the one that the reference names to the platform's manifest and its configuration."""

    reference: str
    name: str
    manifest_digest: str
    manifest_media_type: str
    config_digest: str
    platform: str
    size_bytes: int
    chunks: str | None
    format_version: int
    trace: bool
    layers: tuple[Layer, ...]
    age_s: float = 0.0
    documents: tuple[Document, ...] = ()


class LayerStatus(Struct, frozen=True):
    """How far a layer is: compressed bytes received of `size_bytes` (None: not known any more), chunks written."""

    digest: str
    state: LayerState
    pack_id: str | None = None
    received_bytes: int = 0
    size_bytes: int | None = None
    chunks: int | None = None
    reason: str | None = None


class BlobStatus(Struct, frozen=True):
    """A blob of a registry; nothing is fetched by asking."""

    digest: str
    size_bytes: int


class Chain(Struct, frozen=True):
    """Which layer a chain ID ends with, and an image that has it."""

    chain_id: str
    layer_digest: str
    diff_id: str
    name: str
    manifest_digest: str
    platform: str


class Trace(Struct, frozen=True):
    """The chunks that a start touched, in order: `entries` is (u16 number in `layers`, u32 chunk) each, `<HI`.

    `start` is a random number that the pieces of one start's report share; 0: a start of its own."""

    v: int
    layers: tuple[str, ...]
    entries: bytes
    start: int = 0


class Failure(Struct, frozen=True):
    """The body of every answer with a status of 400 or more. `challenges`: the registry's WWW-Authenticate headers."""

    error: str
    kind: str = ""
    retry_after_s: float | None = None
    challenges: tuple[str, ...] = ()


_KINDS: tuple[tuple[type[ImgdistError], str, int], ...] = (
    (UsageError, "usage", 400),
    (NotFoundError, "not_found", 404),
    (DeniedError, "denied", 403),
    (TemporaryError, "temporary", 503),
    (ProtocolError, "protocol", 502),
    (CorruptError, "corrupt", 502),
    (DeclinedError, "declined", 409),
    (UnsupportedError, "unsupported", 501),
)


def failure(error: ImgdistError) -> tuple[int, Failure]:
    """The HTTP status and body that carry an error."""
    for kind, name, status in _KINDS:
        if isinstance(error, kind):
            challenges = error.challenges if isinstance(error, DeniedError) else ()
            return status, Failure(str(error), name, getattr(error, "retry_after_s", None), challenges)
    return 500, Failure(str(error), "internal")


def error_of(failed: Failure, status: int) -> ImgdistError:
    """The error that a failed answer carries."""
    for kind, name, _ in _KINDS:
        if name == failed.kind:
            if kind is TemporaryError:
                return TemporaryError(failed.error, failed.retry_after_s)
            return DeniedError(failed.error, failed.challenges) if kind is DeniedError else kind(failed.error)
    return TemporaryError(failed.error) if status >= 500 else ProtocolError(failed.error)
