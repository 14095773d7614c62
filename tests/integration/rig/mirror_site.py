"""A registry, and a node whose mirror registry clients pull through."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard
from fake_registry import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, FakeRegistry, digest_of, tar
from rig.local_agent import LocalAgent
from rig.registry_thread import registry_thread

from imgdist.config import AgentConfig
from imgdist.demo.containerd import Containerd
from imgdist.demo.ports import free_port
from imgdist.installation import clients
from imgdist.installation.layout import Layout

ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
NAME = "library/image"
DOCKERS = "library/docker"
"""What Docker calls "docker": docker.io is the site's registry, too."""


@dataclass
class Site:
    """`index` is NAME's tag 1 and has one image, `manifest`, with a gzip and a zstd layer; `dockers` is the image of
    DOCKERS' tag 1, with a gzip layer."""

    registry: FakeRegistry
    agent: LocalAgent
    index: str
    manifest: str
    dockers: str

    @property
    def mirror(self) -> str:
        """Its "host:port"."""
        return self.agent.mirror

    @property
    def reference(self) -> str:
        """Without tag."""
        return f"{self.registry.host}/{NAME}"

    @property
    def in_path(self) -> str:
        """The repository as clients call it that put the registry into the path."""
        return f"{self.mirror}/{self.registry.host.replace(':', '_')}/{NAME}"

    def blobs(self) -> list[str]:
        """Digests that the image names: its configuration's and its layers'."""
        manifest = json.loads(self.registry.manifests[self.manifest][1])
        return [blob["digest"] for blob in (manifest["config"], *manifest["layers"])]

    def reads(self) -> dict[str, int]:
        """How often the registry was asked for each manifest and blob by GET."""
        paths = self.registry.paths()
        return {path: paths.count(path) for path in paths if "/blobs/" in path or "/manifests/" in path}

    def tell(self, containerd: Containerd) -> None:
        """What `imgdist install` tells containerd, for all registries; those on loopback have no TLS for it."""
        place = Layout(containerd.directory, containerd.directory / "config.toml")
        ((path, text),) = clients.wanted(place, AgentConfig(mirror_listen=self.mirror), with_containerd=True)
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def registries(self, path: Path) -> Path:
        """As `imgdist install` tells Podman and its like, and that this registry has no TLS."""
        location = f"{self.mirror}/{self.registry.host.replace(':', '_')}"
        path.write_text(
            f'[[registry]]\nprefix = "{self.registry.host}"\nlocation = "{self.registry.host}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true\n'
        )
        return path


@contextmanager
def mirror_site(
    directory: Path, layers: Sequence[dict[str, bytes]], dockers: dict[str, bytes], *settings: str
) -> Iterator[Site]:
    """Both of them; the first layer is compressed by gzip, the others by zstd. `settings` of the agent: "key=value"."""
    directory.mkdir(exist_ok=True)
    with registry_thread() as registry:
        manifest = _add(registry, NAME, [tar(files) for files in layers])
        by_docker = _add(registry, DOCKERS, [tar(dockers)])
        agent = LocalAgent(directory / "a", registry.host)
        agent.mirror = f"127.0.0.1:{free_port()}"
        # docker.io is reached as a registry without TLS behind a proxy, which is our registry itself.
        config = directory / "agent.toml"
        config.write_text(f'[registry.hosts."docker.io"]\nplain_http = true\nproxy = "http://{registry.host}"\n')
        agent.start("--config", str(config), *(word for one in settings for word in ("--set", one)))
        try:
            yield Site(registry, agent, registry.tags[f"{NAME}:1"], manifest, by_docker)
        finally:
            agent.close()


def _add(registry: FakeRegistry, name: str, tars: list[bytes]) -> str:
    """The digest of the image in the index that is tagged 1."""
    blobs = [gzip.compress(tars[0], mtime=0), *(zstandard.ZstdCompressor().compress(tar) for tar in tars[1:])]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
        "history": [{"created_by": "test"} for _ in tars],
    }
    raw = json.dumps(config).encode()
    kinds = [OCI_LAYER] + [ZSTD_LAYER] * len(tars[1:])
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": registry.add_blob(raw), "size": len(raw)},
        "layers": [
            {"mediaType": kind, "digest": registry.add_blob(blob), "size": len(blob)}
            for kind, blob in zip(kinds, blobs, strict=True)
        ],
    }
    raw = json.dumps(manifest).encode()
    digest = registry.add_manifest(raw, OCI_MANIFEST)
    child = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(raw)}
    child["platform"] = {"os": "linux", "architecture": "amd64"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}
    registry.add_manifest(json.dumps(index).encode(), OCI_INDEX, "1", name)
    return digest
