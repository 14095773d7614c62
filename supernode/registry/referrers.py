"""Referrers of a manifest at registries that have no API for it: the tag schema (distribution-spec "Referrers Tag
Schema"), of which clients need not know behind this one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from imgdist.errors import ProtocolError
from imgdist.oci.manifest import OCI_INDEX


def tag(digest: str) -> str:
    """The tag under which a client that found no API left the index of a manifest's referrers."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def index(manifests: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """The answer that lists these descriptors."""
    return msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def filtered(raw: bytes, artifact_type: str) -> bytes:
    """The index with the descriptors of one artifact type alone. ProtocolError if it is none."""
    try:
        document = msgspec.json.decode(raw, type=dict[str, Any])
        found = [d for d in document.get("manifests", []) if d.get("artifactType") == artifact_type]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ProtocolError(f"index of referrers: {error}") from None
    return msgspec.json.encode({**document, "manifests": found})
