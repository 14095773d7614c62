"""The supernode against a registry in a container, by testcontainers on an engine of its own."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require
from rig.engine import engine
from supernode_rig import layer_tree, push_image, read_pack, supernode, url_of

from agent.supernode_client import SupernodeClient
from imgdist.demo.ports import free_port
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import answers

IMAGE = "localhost/registry-test"
REGISTRY = "/usr/bin/docker-registry"


@pytest.fixture(scope="module")
def docker_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine of this suite; yields DOCKER_HOST."""
    require(shutil.which(REGISTRY), "docker-registry")
    with engine(tmp_path_factory.mktemp("docker")) as socket:
        yield f"unix://{socket}"


def _registry_tar(port: int) -> bytes:
    """A root file system with Debian's registry, the libraries it needs and a configuration of our own."""
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": "/data"}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    raw = io.BytesIO()
    linked = subprocess.run(["ldd", REGISTRY], capture_output=True, text=True, check=False).stdout
    files = [REGISTRY, *(word for word in linked.split() if word.startswith("/"))]
    with tarfile.open(fileobj=raw, mode="w", dereference=True) as tar:
        for path in files:
            tar.add(path, path.lstrip("/"))
        for name, content in (("etc/registry.yml", json.dumps(config)), ("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
        for name in ("data", "tmp"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(member)
    return raw.getvalue()


@pytest.mark.timeout(300)
async def test_read_once_then_without_the_container(
    docker_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(importlib.util.find_spec("testcontainers"), "testcontainers (pip)")
    testcontainers = importlib.import_module("testcontainers.core.container")
    settings = importlib.import_module("testcontainers.core.config").testcontainers_config
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setattr(settings, "ryuk_disabled", True)
    port = free_port()
    address = f"127.0.0.1:{port}"
    container = (
        testcontainers.DockerContainer(IMAGE)
        .with_kwargs(network_mode="host")
        .with_command([REGISTRY, "serve", "/etc/registry.yml"])
    )
    client_of_engine = container.get_docker_client().client
    try:
        client_of_engine.api.import_image_from_data(_registry_tar(port), repository=IMAGE, tag="latest")
        layers = (layer_tree(11), layer_tree(12, 4))
        with container:
            wait_until(lambda: answers(address, "/v2/"), "the registry in the container")
            reference, digest, _ = push_image(tmp_path / "i", address, "1", *layers)
            with supernode(tmp_path, address):
                async with SupernodeClient(url_of(tmp_path)) as client:
                    resolved = await client.resolve(reference)
                    for layer in resolved.layers:
                        index, _ = await client.follow_index(layer.digest)
                        assert index.diff_id == layer.diff_id
                    logs = b"".join(container.get_logs())
        assert b"panic" not in logs
        assert not answers(address, "/v2/")
        with supernode(tmp_path, address):
            async with SupernodeClient(url_of(tmp_path)) as client:
                again = await client.resolve(reference)
                assert again.manifest_digest == digest
                assert [layer.state for layer in again.layers] == ["ready", "ready"]
                image = read_pack(again.chunks or "", (await client.follow_index(again.layers[0].digest))[0])
        for content in layers[0].values():
            assert content in image
    finally:
        client_of_engine.close()
