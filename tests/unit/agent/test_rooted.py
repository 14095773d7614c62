"""An image as a supernode gives it, held against the image's own documents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from agent.known_images import KnownImage, KnownLayer
from agent.rooted import check
from imgdist.errors import CorruptError, ImgdistError, ProtocolError
from imgdist.oci.manifest import chain_ids, digest_of
from imgdist.oci.reference import Reference
from imgdist.wire.control import Document

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DIFF_IDS = ["sha256:" + "1" * 64, "sha256:" + "2" * 64]
BLOBS = ["sha256:" + "a" * 64, "sha256:" + "b" * 64]


def document(media_type: str, content: dict[str, Any]) -> Document:
    return Document(media_type, json.dumps(content).encode())


def descriptor(media_type: str, digest: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": 9, **more}


@dataclass
class Made:
    """An image of two layers, in an index."""

    index: Document
    manifest: Document
    config: Document
    image: KnownImage

    @property
    def documents(self) -> list[Document]:
        return [self.index, self.manifest, self.config]

    def named(self, digest: str = "") -> Reference:
        return Reference("reg.test", "app", "" if digest else "1", digest)


@pytest.fixture
def made() -> Made:
    config = document(
        CONFIG, {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}}
    )
    layers = [descriptor(LAYER, blob) for blob in BLOBS]
    manifest = document(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, digest_of(config.raw)),
            "layers": layers,
        },
    )
    platform = {"os": "linux", "architecture": "amd64"}
    named = descriptor(MANIFEST, digest_of(manifest.raw), platform=platform)
    index = document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]})
    known = tuple(
        KnownLayer(digest=blob, media_type=LAYER, size_bytes=9, diff_id=diff_id, chain_id=chain)
        for blob, diff_id, chain in zip(BLOBS, DIFF_IDS, chain_ids(DIFF_IDS), strict=True)
    )
    image = KnownImage(
        reference="", name="reg.test/app", manifest_digest=digest_of(manifest.raw), platform="linux/amd64", layers=known
    )
    return Made(index, manifest, config, image)


def test_an_image_that_is_what_it_is_said_to_be(made: Made) -> None:
    check(made.named(digest_of(made.index.raw)), made.image, made.documents)
    check(made.named(digest_of(made.manifest.raw)), made.image, made.documents[1:])
    check(made.named(), made.image, made.documents[1:])
    check(made.named(), made.image, made.documents)


def altered(made: Made, what: str) -> tuple[KnownImage, list[Document]]:
    image, documents = made.image, made.documents
    base, top = image.layers
    if what in ("diff_id", "chain_id", "digest"):
        image = msgspec.structs.replace(image, layers=(base, msgspec.structs.replace(top, **{what: BLOBS[0]})))
    elif what == "a layer less":
        image = msgspec.structs.replace(image, layers=(base,))
    elif what == "manifest digest":
        image = msgspec.structs.replace(image, manifest_digest=BLOBS[0])
    else:
        place = ["index", "manifest", "configuration"].index(what)
        documents[place] = msgspec.structs.replace(documents[place], raw=documents[place].raw + b" ")
    return image, documents


@pytest.mark.parametrize(
    "what", ["diff_id", "chain_id", "digest", "a layer less", "manifest digest", "index", "manifest", "configuration"]
)
def test_what_is_altered_is_found(made: Made, what: str) -> None:
    reference = made.named(digest_of(made.index.raw))
    image, documents = altered(made, what)
    with pytest.raises(CorruptError, match=r"reg\.test/app"):
        check(reference, image, documents)


def test_another_image_is_not_the_one_that_was_named(made: Made) -> None:
    with pytest.raises(CorruptError, match="expected a document of digest"):
        check(made.named(BLOBS[0]), made.image, made.documents)


@pytest.mark.parametrize("documents", [[], [Document(MANIFEST, b"{}")], [Document("", b"x"), Document("", b"y")]])
def test_without_documents_nothing_is_believed(made: Made, documents: list[Document]) -> None:
    with pytest.raises(ImgdistError) as refused:
        check(made.named(digest_of(made.index.raw)), made.image, documents)
    assert isinstance(refused.value, CorruptError | ProtocolError)
