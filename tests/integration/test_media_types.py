"""Kinds of layers and images through a real supernode: lazy or declined, each as docs/media-types.md says."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from struct import pack
from typing import Any

import pytest
import zstandard
from fake_registry import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, FakeRegistry, digest_of, serving, tar_gz
from raw_tar import END, directory, file
from supernode_rig import supernode, url_of

from agent.supernode_client import SupernodeClient
from imgdist.errors import DeclinedError, ImgdistError
from imgdist.oci.manifest import LAYER_TYPES

_MEMBERS = (directory(b"d"), file(b"d/f", b"text\n" * 2000), file(b"stargz.index.json", b"{}"))
_TAR = b"".join(_MEMBERS) + END
_OCI, _DOCKER = "application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."
_DOCUMENT = (Path(__file__).parents[2] / "docs/media-types.md").read_text(encoding="utf-8")


def _estargz() -> bytes:
    """A gzip member for each file, and a footer that names the offset of the table of contents."""
    members = [gzip.compress(member) for member in (*_MEMBERS, END)]
    offset = b"SG" + pack("<H", 22) + b"%016xSTARGZ" % sum(map(len, members[:2]))
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + pack("<H", len(offset)) + offset
    empty = zlib.compressobj(wbits=-15)
    return b"".join(members) + footer + empty.flush() + bytes(8)


def _zstd_chunked() -> bytes:
    """A zstd frame for each file; manifest, tar-split and footer in skippable frames."""
    frames = [zstandard.ZstdCompressor().compress(member) for member in (*_MEMBERS, END)]
    hidden = [zstandard.compress(b"{}"), bytes(40) + b"GNUlInUx"]
    return b"".join(frames) + b"".join(b"\x50\x2a\x4d\x18" + pack("<I", len(frame)) + frame for frame in hidden)


_LAZY: dict[str, tuple[str, bytes]] = {
    "OCI tar": (f"{_OCI}v1.tar", _TAR),
    "OCI gzip": (f"{_OCI}v1.tar+gzip", gzip.compress(_TAR)),
    "OCI zstd": (f"{_OCI}v1.tar+zstd", zstandard.compress(_TAR)),
    "Docker tar": (f"{_DOCKER}diff.tar", _TAR),
    "Docker gzip": (f"{_DOCKER}diff.tar.gzip", gzip.compress(_TAR, 9)),
    "Docker zstd": (f"{_DOCKER}diff.tar.zstd", zstandard.compress(_TAR, 19)),
    "eStargz": (f"{_OCI}v1.tar+gzip", _estargz()),
    "zstd:chunked": (f"{_OCI}v1.tar+zstd", _zstd_chunked()),
    "another compression than said": (f"{_OCI}v1.tar+gzip", zstandard.compress(_TAR, 3)),
}
_DECLINED: dict[str, tuple[str, str]] = {
    "foreign Docker": (f"{_DOCKER}foreign.diff.tar.gzip", "foreign layer"),
    "foreign OCI": (f"{_OCI}nondistributable.v1.tar+gzip", "foreign layer"),
    "encrypted": (f"{_OCI}v1.tar+gzip+encrypted", "encrypted layer"),
    "encrypted tar": (f"{_OCI}v1.tar+encrypted", "encrypted layer"),
    "nydus": (f"{_OCI}nydus.blob.v1", "media type"),
    "wasm": ("application/wasm", "media type"),
    "helm chart": ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "media type"),
}


async def test_layers_are_lazy_or_declined_by_their_media_type(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as registry:
        with supernode(tmp_path, registry.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                packs = set()
                for number, (media_type, layer) in enumerate(_LAZY.values()):
                    registry.add_image([layer], f"lazy{number}", media_type, [digest_of(_TAR)])
                    await client.resolve(f"{registry.host}/a/b:lazy{number}")
                    packs.add((await client.follow_index(digest_of(layer)))[0].pack_id)
                assert len(packs) == 1, "twins share a pack"
                for number, (media_type, words) in enumerate(_DECLINED.values()):
                    layer = tar_gz({"f": b"%d" % number})
                    registry.add_image([layer], f"declined{number}", media_type)
                    (seen,) = (await client.resolve(f"{registry.host}/a/b:declined{number}")).layers
                    assert seen.state == "declined"
                    assert words in (seen.reason or "") and media_type in (seen.reason or "")
                    assert not registry.paths(part=digest_of(layer)), "not a byte of it is read"


_EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
_CHART = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
_CONFIG = {"mediaType": OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2}
_LAYER = {"mediaType": f"{_OCI}v1.tar+gzip", "digest": digest_of(b"layer"), "size": 5}
_V1 = "application/vnd.docker.distribution.manifest.v1"
_NO_IMAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "schema 1": (f"{_V1}+json", {"schemaVersion": 1, "fsLayers": []}, "schema version 1"),
    "schema 1, signed": (f"{_V1}+prettyjws", {"schemaVersion": 1, "signatures": []}, "schema version 1"),
    "artifact": (OCI_MANIFEST, {"schemaVersion": 2, "config": _EMPTY, "layers": [_EMPTY]}, "artifact"),
    "Helm chart": (OCI_MANIFEST, {"schemaVersion": 2, "config": _CHART, "layers": [_LAYER]}, "artifact"),
    "artifact manifest": (
        "application/vnd.oci.artifact.manifest.v1+json",
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []},
        "no image",
    ),
    "too many layers": (OCI_MANIFEST, {"schemaVersion": 2, "config": _CONFIG, "layers": [_LAYER] * 501}, "501 layers"),
}


async def test_what_is_no_image_is_declined_with_a_reason(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as registry:
        registry.add_blob(b"{}")
        with supernode(tmp_path, registry.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                for number, (media_type, document, words) in enumerate(_NO_IMAGES.values()):
                    registry.add_manifest(json.dumps(document).encode(), media_type, f"t{number}")
                    with pytest.raises(DeclinedError, match=words):
                        await client.resolve(f"{registry.host}/a/b:t{number}")


async def test_of_many_platforms_one_is_read(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as registry:
        entries, layers = [], {}
        for name in ("linux/amd64", "linux/arm64/v8", "windows/amd64", "unknown/unknown"):
            layers[name] = tar_gz({"platform": name.encode()})
            system, architecture, *variant = name.split("/")
            entries.append(
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": registry.add_image([layers[name]]),
                    "size": 1,
                    "platform": {"os": system, "architecture": architecture, "variant": "".join(variant)},
                }
            )
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        registry.add_manifest(json.dumps(index).encode(), OCI_INDEX, "many")
        with supernode(tmp_path, registry.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                resolved = await client.resolve(f"{registry.host}/a/b:many", platform="linux/arm64")
                assert [layer.digest for layer in resolved.layers] == [digest_of(layers["linux/arm64/v8"])]
                await client.follow_index(resolved.layers[0].digest)
                with pytest.raises(ImgdistError, match="no image for linux/s390x; it offers"):
                    await client.resolve(f"{registry.host}/a/b:many", platform="linux/s390x")
        others = {entry["digest"] for entry in entries if entry["platform"]["architecture"] != "arm64"}
        others |= {digest_of(layer) for name, layer in layers.items() if name != "linux/arm64/v8"}
        assert not [path for path in registry.paths() if path.rpartition("/")[2] in others]
        assert len(registry.paths(part="/blobs/")) == 2, "a configuration and a layer"


def test_the_document_names_every_media_type() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (\w+)", _DOCUMENT, re.MULTILINE))
    assert {name for name, fate in rows.items() if fate == "lazy"} == LAYER_TYPES
    for media_type, _ in _DECLINED.values():
        if "tar" in media_type and "helm" not in media_type:
            assert rows[media_type] == "declined"
