"""Registries that answer with documents made to do harm: each is refused in one line, and the supernode goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_registry import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, FakeRegistry, digest_of, serving, tar_gz
from supernode_rig import supernode, url_of

from agent.supernode_client import SupernodeClient
from imgdist.errors import DeclinedError, ImgdistError

_LAYER = tar_gz({"f": b"1"})
_GOOD = {"mediaType": OCI_LAYER, "digest": digest_of(_LAYER), "size": len(_LAYER)}
Made = Callable[[FakeRegistry], bytes]


def _manifest(registry: FakeRegistry, layers: list[dict[str, Any]], config: bytes | None = None) -> bytes:
    config = config or b'{"rootfs": {"diff_ids": ["sha256:%064d"]}}' % 0
    described = {"mediaType": OCI_CONFIG, "digest": registry.add_blob(config), "size": len(config)}
    return json.dumps({"schemaVersion": 2, "config": described, "layers": layers}).encode()


def _looping(registry: FakeRegistry) -> bytes:
    """Four indexes inside each other."""
    inner = b'{"schemaVersion": 2, "manifests": []}'
    for _ in range(4):
        digest = registry.add_manifest(inner, OCI_INDEX)
        inner = json.dumps(
            {"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": digest, "size": len(inner)}]}
        ).encode()
    return inner


DOCUMENTS: dict[str, tuple[str, Made, str]] = {
    "nested": (OCI_MANIFEST, lambda registry: b'{"a":' * 300_000, "manifest"),
    "large": (OCI_MANIFEST, lambda registry: b" " * (5 << 20) + b"{}", "at most|more than"),
    "both kinds": (OCI_MANIFEST, lambda registry: b'{"schemaVersion": 2, "manifests": [], "layers": []}', "both"),
    "indexes in indexes": (OCI_INDEX, _looping, "indexes inside"),
    "empty index": (OCI_INDEX, lambda registry: b'{"schemaVersion": 2, "manifests": []}', "no image for"),
    "digest malformed": (OCI_MANIFEST, lambda registry: _manifest(registry, [{**_GOOD, "digest": "../x"}]), "digest"),
    "size negative": (OCI_MANIFEST, lambda registry: _manifest(registry, [{**_GOOD, "size": -1}]), "size"),
    "layers by the thousand": (OCI_MANIFEST, lambda registry: _manifest(registry, [_GOOD] * 20_000), "20000 layers"),
    "diff IDs missing": (OCI_MANIFEST, lambda registry: _manifest(registry, [_GOOD], b"{}"), "0 diff IDs"),
    "diff ID malformed": (
        OCI_MANIFEST,
        lambda registry: _manifest(registry, [_GOOD], b'{"rootfs": {"diff_ids": ["sha256:../../x"]}}'),
        "diff ID",
    ),
    "configuration nested": (OCI_MANIFEST, lambda registry: _manifest(registry, [_GOOD], b"[" * 300_000), "config"),
}


async def test_documents_are_refused_in_one_line(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as registry:
        with supernode(tmp_path, registry.host) as process:
            async with SupernodeClient(url_of(tmp_path)) as client:
                for number, (name, (media_type, make, words)) in enumerate(DOCUMENTS.items()):
                    registry.add_manifest(make(registry), media_type, f"t{number}")
                    with pytest.raises(ImgdistError, match=words) as refused:
                        await client.resolve(f"{registry.host}/a/b:t{number}")
                    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000, name
                registry.add_image([_LAYER], "good")
                await client.resolve(f"{registry.host}/a/b:good")
                assert (await client.follow_index(digest_of(_LAYER)))[0].chunk_count > 0
            assert "Traceback" not in process.written()


async def test_a_layer_of_another_size_than_said_is_not_kept(tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as registry:
        with supernode(tmp_path, registry.host):
            async with SupernodeClient(url_of(tmp_path)) as client:
                for number, wrong in enumerate((-1, 1, 1 << 50)):
                    layer = tar_gz({"f": b"%d" % wrong})
                    said = {"mediaType": OCI_LAYER, "digest": registry.add_blob(layer), "size": len(layer) + wrong}
                    registry.add_manifest(_manifest(registry, [said]), OCI_MANIFEST, f"by{number}")
                    await client.resolve(f"{registry.host}/a/b:by{number}")
                    with pytest.raises(ImgdistError) as refused:
                        await client.follow_index(said["digest"])
                    assert not isinstance(refused.value, DeclinedError)
                    assert list((tmp_path / "sn/packs").iterdir()) == []
