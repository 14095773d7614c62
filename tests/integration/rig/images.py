"""Images made on the spot and pushed to a local registry, byte by byte under the test's control."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from imgdist.demo.image import CONFIG_TYPE, Blob, Image, encode
from imgdist.demo.push import push

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_TIME_S = 1_700_000_000


@dataclass
class LayerTar:
    """A layer being written: each call adds one member, in that order."""

    _file: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self._archive = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, content: bytes | None = None, **attributes: Any) -> LayerTar:
        """A file with `content`, a directory (name ends in "/"), or what `attributes` of tarfile.TarInfo say."""
        member = tarfile.TarInfo(name.rstrip("/"))
        member.mtime = _TIME_S
        if name.endswith("/"):
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        for key, value in attributes.items():
            setattr(member, key, value)
        member.size = len(content or b"")
        self._archive.addfile(member, io.BytesIO(content or b""))
        return self

    def link(self, name: str, target: str, *, hard: bool = False, mode: int = 0o755) -> LayerTar:
        """A symbolic or hard link; a hard link's mode becomes that of its target, as in every unpacker."""
        return self.add(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target, mode=mode)

    def bytes(self) -> bytes:
        self._archive.close()
        return self._file.getvalue()


@dataclass(frozen=True)
class Pushed:
    """An image in the registry: how to name it, and what it is made of."""

    reference: str
    manifest_digest: str
    layer_digests: tuple[str, ...]
    """Of the compressed layers, as the registry names them."""
    layers: tuple[bytes, ...] = field(repr=False)
    """Uncompressed tars, the base first."""

    @property
    def chain_id(self) -> str:
        return chain_id(self.layers)


def chain_id(layers: Sequence[bytes]) -> str:
    """The top layer's chain ID (OCI image specification, "Layer ChainID")."""
    chain, *rest = (digest(layer) for layer in layers)
    for diff_id in rest:
        chain = digest(f"{chain} {diff_id}".encode())
    return chain


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Workshop:
    """Makes images in `directory` and pushes them to the registry at `address` as REPOSITORY:1."""

    def __init__(self, directory: Path, address: str) -> None:
        self._directory = directory
        self.address = address

    def push(
        self, repository: str, layers: Sequence[bytes], *, command: Sequence[str] = (), compression: str = "gzip"
    ) -> Pushed:
        """An image of uncompressed tars, each compressed as said: "gzip", "zstd" or "none"."""
        layout = self._directory / repository
        (layout / "blobs/sha256").mkdir(parents=True)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(command), "Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
        kind = _LAYER if compression == "none" else f"{_LAYER}+{compression}"
        blobs = tuple(_put(layout, kind, _COMPRESS[compression](layer)) for layer in layers)
        config_blob = _put(layout, CONFIG_TYPE, encode(config))
        image = Image(layout, config_blob, config_blob, blobs)
        reference, manifest_digest = push(image, self.address, repository, "1")
        return Pushed(reference, manifest_digest, tuple(blob.digest for blob in blobs), tuple(layers))

    def pause(self) -> Pushed:
        """The sandbox image that CRI starts for every pod: it only sleeps."""
        return self.push("pause", [busybox_layer()], command=("/bin/sleep", "1000000"))


def _put(layout: Path, media_type: str, content: bytes) -> Blob:
    blob = Blob(media_type, digest(content), len(content))
    (layout / "blobs/sha256" / blob.digest.removeprefix("sha256:")).write_bytes(content)
    return blob


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda layer: gzip.compress(layer, 1, mtime=0),
    "zstd": lambda layer: zstandard.compress(layer, 3),
    "none": lambda layer: layer,
}


def busybox_layer(*extra: tuple[str, bytes]) -> bytes:
    """Debian's static busybox as /bin/busybox and /bin/sh, the least that runs; and `extra` files."""
    layer = LayerTar().add("bin/").add("etc/").add("tmp/", mode=0o1777)
    layer.add("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in ("sh", "sleep", "cat", "sha256sum", "find", "sort", "xargs", "env", "echo", "ls"):
        layer.link(f"bin/{applet}", "bin/busybox" if applet == "sh" else "busybox", hard=applet == "sh")
    layer.add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n").add("etc/group", b"root:x:0:\n")
    for name, content in extra:
        layer.add(name, content)
    return layer.bytes()
