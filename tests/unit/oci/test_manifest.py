"""Manifests, indexes, configurations, platforms: what is read, chosen and refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import DeclinedError, ImgdistError, NotFoundError, ProtocolError, UsageError
from imgdist.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    chain_ids,
    choose,
    error_details,
    parse_config,
    parse_manifest,
)
from imgdist.oci.platform import Platform

D1, D2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": D1, "size": 3}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": D2, "size": 7}


def manifest(**fields: Any) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER], **fields}
    return json.dumps({k: v for k, v in document.items() if v is not None}).encode()


def index(*platforms: str | None, **fields: Any) -> bytes:
    entries = []
    for number, platform in enumerate(platforms):
        entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": f"sha256:{number:064x}", "size": 1}
        if platform:
            names = ("os", "architecture", "variant")
            entry["platform"] = dict(zip(names, platform.split("/"), strict=False))
        entries.append(entry)
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **fields}).encode()


def test_manifest() -> None:
    raw = manifest()
    parsed = parse_manifest(raw, OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    assert parsed.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert parsed.raw == raw
    assert [(layer.obstacle, layer.size) for layer in parsed.layers] == [(None, 7)]


@pytest.mark.parametrize(
    ("raw", "media_type", "kind"),
    [
        (manifest(mediaType=None), OCI_MANIFEST, Manifest),
        (manifest(mediaType=None), "application/json", Manifest),
        (manifest(mediaType=None), "", Manifest),
        (manifest(), OCI_MANIFEST + "; charset=utf-8", Manifest),
        (manifest(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST, Manifest),
        (index(), OCI_INDEX, Index),
        (index(mediaType=DOCKER_LIST), "text/plain", Index),
    ],
)
def test_the_media_type_comes_from_header_or_document(raw: bytes, media_type: str, kind: type) -> None:
    assert type(parse_manifest(raw, media_type)) is kind


@pytest.mark.parametrize(
    ("raw", "media_type", "error"),
    [
        (b"", OCI_MANIFEST, ProtocolError),
        (b"[]", OCI_MANIFEST, ProtocolError),
        (b"{}", OCI_MANIFEST, ProtocolError),
        (manifest(config=None), OCI_MANIFEST, ProtocolError),
        (manifest(layers=None), OCI_MANIFEST, ProtocolError),
        (manifest(layers=[{**LAYER, "digest": "sha256:xyz"}]), OCI_MANIFEST, ProtocolError),
        (manifest(layers=[{**LAYER, "size": -1}]), OCI_MANIFEST, ProtocolError),
        (manifest(layers=[{**LAYER, "size": "7"}]), OCI_MANIFEST, ProtocolError),
        (manifest(manifests=[]), OCI_MANIFEST, ProtocolError),
        (manifest(), OCI_INDEX, ProtocolError),
        (index(mediaType=OCI_MANIFEST), OCI_MANIFEST, ProtocolError),
        (manifest(schemaVersion=1), "application/vnd.docker.distribution.manifest.v1+prettyjws", DeclinedError),
        (manifest(mediaType="application/x"), "application/x", DeclinedError),
    ],
)
def test_refused(raw: bytes, media_type: str, error: type[ImgdistError]) -> None:
    with pytest.raises(error):
        parse_manifest(raw, media_type)


@given(st.binary(max_size=200), st.sampled_from([OCI_MANIFEST, OCI_INDEX, ""]))
def test_nothing_else_comes_out(raw: bytes, media_type: str) -> None:
    with pytest.raises((ProtocolError, DeclinedError)):
        parse_manifest(raw, media_type)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ("linux/arm64", "linux/amd64"), 1),
        ("linux/x86_64", ("linux/amd64",), 0),
        ("linux/amd64", ("linux/amd64/v3", "linux/amd64"), 1),
        ("linux/amd64/v3", ("linux/amd64", "linux/amd64/v2", "linux/amd64/v4"), 1),
        ("linux/arm64", ("linux/arm/v7", "linux/arm64/v8"), 1),
        ("linux/arm", ("linux/arm/v5", "linux/arm/v6", "linux/arm/v7"), 2),
        ("linux/arm/v6", ("linux/arm/v7", "linux/arm/v5", "linux/arm/v6"), 2),
        ("linux/amd64", ("unknown/unknown", "linux/amd64", "linux/amd64"), 1),
        ("linux/amd64", (None, "linux/amd64"), 1),
        ("linux/amd64", ("linux/arm64", None), 1),
        ("linux/arm", ("linux/arm/v²", "linux/arm/v6", "linux/arm/v" + "9" * 5000), 1),
    ],
)
def test_choose(wanted: str, offered: tuple[str | None, ...], chosen: int) -> None:
    parsed = parse_manifest(index(*offered), OCI_INDEX)
    assert isinstance(parsed, Index)
    assert choose(parsed, Platform.parse(wanted)).digest == f"sha256:{chosen:064x}"


def test_choose_says_what_there_is() -> None:
    parsed = parse_manifest(index("linux/arm64", "windows/amd64"), OCI_INDEX)
    assert isinstance(parsed, Index)
    with pytest.raises(NotFoundError, match="no image for linux/amd64; it offers linux/arm64, windows/amd64"):
        choose(parsed, Platform.parse("linux/amd64"))


def test_platform_text() -> None:
    assert str(Platform.parse("Linux/aarch64/8")) == "linux/arm64"
    assert str(Platform.parse("linux/armel")) == "linux/arm/v6"
    for text in ("linux", "", "a/b/c/d", "linux/"):
        with pytest.raises(UsageError, match="expected os/architecture"):
            Platform.parse(text)


@pytest.mark.parametrize(
    ("media_type", "obstacle"),
    [
        ("application/vnd.oci.image.layer.v1.tar", None),
        ("application/vnd.oci.image.layer.v1.tar+zstd", None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", None),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "foreign"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/wasm", "application/wasm"),
    ],
)
def test_what_keeps_a_layer_from_being_taken_over(media_type: str, obstacle: str | None) -> None:
    seen = Descriptor(media_type, D1, 1).obstacle
    assert seen is None if obstacle is None else seen is not None and obstacle in seen


def test_more_layers_than_overlayfs_stacks_are_declined() -> None:
    parsed = parse_manifest(manifest(layers=[LAYER] * 501), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    with pytest.raises(DeclinedError, match="501 layers"):
        parse_config(config(*[D1] * 501), parsed)


def config(*diff_ids: str, **fields: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    return json.dumps({"os": "linux", "architecture": "arm64", "variant": "v8", "rootfs": rootfs, **fields}).encode()


def test_config() -> None:
    parsed = parse_manifest(manifest(), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    read = parse_config(config(D1), parsed)
    assert read.diff_ids == (D1,)
    assert str(read.platform) == "linux/arm64"
    for raw in (
        config(),
        config(D1, D2),
        config("sha256:1"),
        b"{}",
        config(D1, rootfs={"type": "x", "diff_ids": [D1]}),
    ):
        with pytest.raises(ProtocolError, match="image configuration"):
            parse_config(raw, parsed)
    artifact = parse_manifest(manifest(config={**CONFIG, "mediaType": "application/vnd.x.config"}), OCI_MANIFEST)
    assert isinstance(artifact, Manifest)
    with pytest.raises(DeclinedError, match="artifact"):
        parse_config(config(D1), artifact)


def test_chain_ids_as_the_specification_has_them() -> None:
    second = "sha256:" + hashlib.sha256(f"{D1} {D2}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {D1}".encode()).hexdigest()
    assert chain_ids([D1, D2, D1]) == [D1, second, third]
    assert chain_ids([]) == []


def test_error_details() -> None:
    assert error_details(b'{"errors":[{"code":"DENIED","message":"no"},{"code":"X"}]}') == "DENIED no; X"
    for raw in (b"", b"<html>", b"[]", b'{"errors":3}', b'{"errors":[3]}', b"\xff"):
        assert error_details(raw) == ""
