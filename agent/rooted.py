"""What a supernode says of an image, held against the documents of the image itself. Pure.

containerd does that for what it pulls, and hands us chain IDs; who mounts an image without it has the reference alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from agent.known_images import KnownImage
from imgdist.errors import CorruptError, ProtocolError
from imgdist.oci.manifest import Index, Manifest, chain_ids, digest_of, parse_config, parse_manifest
from imgdist.oci.reference import Reference
from imgdist.wire.control import Document


def check(reference: Reference, image: KnownImage, documents: Sequence[Document]) -> None:
    """Return if `documents`, from what the reference names by its digest to the configuration, say of the layers what
    `image` does. What a tag names, nobody but the registry knows: there they begin with the platform's manifest.

    Raises CorruptError if they do not, ProtocolError if they are none.
    """
    name = str(reference)
    *manifests, config = documents or [Document("", b"")]
    if not manifests:
        raise ProtocolError(f"{name}: its supernode sent no manifest: it is of an older release, or lies; upgrade it")
    expected = reference.digest or image.manifest_digest
    if not reference.digest:
        manifests = manifests[-1:]
    for document, following in pairwise(manifests):
        index, digest = _parsed(name, document, expected), digest_of(following.raw)
        if not isinstance(index, Index) or digest not in [one.digest for one in index.manifests]:
            raise CorruptError(f"{name}: its supernode gives manifest {digest}, which {expected} does not name")
        expected = digest
    manifest = _parsed(name, manifests[-1], expected)
    if not isinstance(manifest, Manifest) or expected != image.manifest_digest:
        raise CorruptError(f"{name}: expected manifest {image.manifest_digest}, its supernode gives {expected}")
    if digest_of(config.raw) != manifest.config.digest:
        raise CorruptError(f"{name}: expected configuration {manifest.config.digest}, found {digest_of(config.raw)}")
    diff_ids = parse_config(config.raw, manifest).diff_ids
    rooted = list(zip([layer.digest for layer in manifest.layers], diff_ids, chain_ids(diff_ids), strict=True))
    if rooted != [(layer.digest, layer.diff_id, layer.chain_id) for layer in image.layers]:
        raise CorruptError(f"{name}: its supernode gives other layers than its manifest {expected} names")


def _parsed(name: str, document: Document, expected: str) -> Manifest | Index:
    if digest_of(document.raw) != expected:
        raise CorruptError(f"{name}: expected a document of digest {expected}, found {digest_of(document.raw)}")
    return parse_manifest(document.raw, document.media_type)
