"""Manifests, image indexes and image configurations: OCI image-spec 1.1 and Docker image manifest v2 schema 2.

Pure: bytes in, frozen values out. Only ProtocolError (malformed) and DeclinedError (a kind of image that is not taken
over, such as schema 1 or an artifact) come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from imgdist.errors import DeclinedError, NotFoundError, ProtocolError
from imgdist.oci import platform as platforms
from imgdist.oci.platform import Platform
from imgdist.oci.reference import is_digest, is_sha256

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",  # written by old versions of Docker
)

LAYER_TYPES = frozenset(
    (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    )
)
"""Of layers that are taken over. How one is compressed is told by its bytes, as containerd does."""
_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.",
)
_ENCRYPTED = "+encrypted"
LAYERS_MAX = 500
"""Layers of an image: as many as overlayfs stacks (OVL_MAX_STACK in fs/overlayfs/params.h)."""

T = TypeVar("T")


class Descriptor(msgspec.Struct, frozen=True):
    """What names a blob or manifest: media type, digest, size in bytes (image-spec descriptor.md)."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = {}

    @property
    def obstacle(self) -> str | None:
        """Why a layer of this media type is not taken over; None if it is."""
        if self.media_type in LAYER_TYPES:
            return None
        if self.media_type.startswith(_FOREIGN):
            return f"foreign layer ({self.media_type}): its registry need not have it"
        if self.media_type.endswith(_ENCRYPTED):
            return f"encrypted layer ({self.media_type}): only containerd has the key"
        return f"layers of media type {self.media_type} are not taken over"


class Manifest(msgspec.Struct, frozen=True):
    """One platform's image: its configuration and layers, lowest first; `raw` are the bytes that `digest` names."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    digest: str
    raw: bytes


class Index(msgspec.Struct, frozen=True):
    """A list of manifests, one per platform (and attestations, which name the platform unknown/unknown)."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    digest: str
    raw: bytes


class ImageConfig(msgspec.Struct, frozen=True):
    """The part of an image's configuration that matters here."""

    diff_ids: tuple[str, ...]
    platform: Platform


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str | None = None


class _Descriptor(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType")
    digest: str = msgspec.field(name="digest")
    size: int = msgspec.field(name="size")
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None

    def value(self) -> Descriptor:
        if not is_digest(self.digest):
            raise ProtocolError(f"descriptor names the digest {self.digest[:80]!r}; expected sha256: and 64 hex digits")
        if self.size < 0:
            raise ProtocolError(f"descriptor {self.digest} names a size of {self.size} bytes")
        seen = self.platform
        return Descriptor(
            self.media_type,
            self.digest,
            self.size,
            Platform.normal(seen.os, seen.architecture, seen.variant or "") if seen else None,
            self.annotations or {},
        )


class _Document(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")
    schema_version: int = msgspec.field(name="schemaVersion", default=2)
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None


class _RootFs(msgspec.Struct):
    type: str = "layers"
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    os: str = "linux"
    architecture: str = ""
    variant: str | None = None
    rootfs: _RootFs | None = None


def digest_of(raw: bytes) -> str:
    """The sha256 digest of a document, as "sha256:<hex>"."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def parse_manifest(raw: bytes, media_type: str) -> Manifest | Index:
    """Read a manifest or index of the given Content-Type ("" or a generic one: told by the document itself)."""
    digest = digest_of(raw)
    what = f"manifest {digest}"
    document = _decode(raw, _Document, what)
    stated = media_type.partition(";")[0].strip().lower()
    if document.schema_version != 2:
        raise DeclinedError(f"{what}: schema version {document.schema_version}; only version 2 is taken over")
    if document.media_type and stated in (*MANIFEST_TYPES, *INDEX_TYPES) and stated != document.media_type:
        raise ProtocolError(f"{what}: served as {stated}, but names itself {document.media_type}")
    if stated not in (*MANIFEST_TYPES, *INDEX_TYPES):
        stated = document.media_type or (OCI_INDEX if document.manifests is not None else OCI_MANIFEST)
    # One document that reads as both kinds could be taken for different images by different clients (CVE-2021-41190).
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise ProtocolError(f"{what}: both an index and an image manifest")
    if stated in INDEX_TYPES:
        if document.manifests is None:
            raise ProtocolError(f"{what}: {stated} without manifests")
        return Index(stated, tuple(d.value() for d in document.manifests), digest, raw)
    if stated not in MANIFEST_TYPES:
        raise DeclinedError(f"{what}: media type {stated} is no image")
    if document.config is None or document.layers is None:
        raise ProtocolError(f"{what}: {stated} without config or layers")
    return Manifest(stated, document.config.value(), tuple(d.value() for d in document.layers), digest, raw)


def choose(index: Index, wanted: Platform) -> Descriptor:
    """The manifest for a platform. Raises NotFoundError naming what the index offers instead."""
    images = [d for d in index.manifests if d.media_type in (*MANIFEST_TYPES, *INDEX_TYPES)]
    number = platforms.best(wanted, [d.platform for d in images])
    if number is None:
        offered = ", ".join(sorted({str(d.platform) for d in images if d.platform})) or "nothing"
        raise NotFoundError(f"index {index.digest}: no image for {wanted}; it offers {offered}")
    return images[number]


def parse_config(raw: bytes, manifest: Manifest) -> ImageConfig:
    """Read the configuration that belongs to `manifest`: as many diff IDs as layers, or ProtocolError."""
    what = f"image configuration {manifest.config.digest}"
    if manifest.config.media_type not in CONFIG_TYPES:
        raise DeclinedError(
            f"{what}: media type {manifest.config.media_type} is no image's; an artifact is not taken over"
        )
    if len(manifest.layers) > LAYERS_MAX:
        raise DeclinedError(f"{what}: {len(manifest.layers)} layers, overlayfs stacks {LAYERS_MAX}")
    document = _decode(raw, _Config, what)
    diff_ids = tuple(document.rootfs.diff_ids) if document.rootfs else ()
    if document.rootfs and document.rootfs.type != "layers":
        raise ProtocolError(f"{what}: rootfs type {document.rootfs.type!r}; expected 'layers'")
    if len(diff_ids) != len(manifest.layers):
        raise ProtocolError(f"{what}: {len(diff_ids)} diff IDs for {len(manifest.layers)} layers")
    for diff_id in diff_ids:
        if not is_sha256(diff_id):
            raise ProtocolError(f"{what}: diff ID {diff_id[:80]!r}; expected sha256: and 64 hex digits")
    return ImageConfig(diff_ids, Platform.normal(document.os, document.architecture, document.variant or ""))


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of each layer, lowest first (image-spec config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def _decode(raw: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{what}: {error}") from None


def error_details(raw: bytes) -> str:
    """The reasons in a registry's error document (distribution-spec "Error Codes"), or ""."""
    try:
        document: Any = msgspec.json.decode(raw)
        reasons = [f"{e.get('code', '')} {e.get('message', '')}".strip() for e in document["errors"]]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    return "; ".join(reasons)[:300]
