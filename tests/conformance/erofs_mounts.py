"""Mounting a layer image, and containerd's own unpacking of the same tar to compare it with."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from parts import require
from raw_tar import END, file

_BASE = file(b"base-file", b"below") + END
_CONFIG = """version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{0}/c.sock"
[ttrpc]
  address = "{0}/c.sock.ttrpc"
"""


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The layer image as the kernel shows it, after fsck.erofs found nothing wrong with it."""
    require(os.getuid() == 0, "root")
    require(shutil.which("fsck.erofs"), "fsck.erofs (Debian: erofs-utils)")
    subprocess.run(["fsck.erofs", str(image)], check=True, capture_output=True)
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


class Unpacker:
    """A containerd of its own that unpacks layers with the overlayfs snapshotter, each above a one-file base layer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def unpack(self, tar: bytes) -> Path | str:
        """Return the directory with the layer's own tree, or what containerd says against it."""
        self._count += 1
        # A diff ID of its own: containerd does not read a layer again that it has unpacked.
        archive = self._directory / "image.tar"
        archive.write_bytes(_oci_archive([_BASE, tar], f"test/{self._count}:1"))
        socket = self._directory / "c.sock"
        found = subprocess.run(
            ["ctr", "--address", str(socket), "images", "import", "--snapshotter", "overlayfs", str(archive)],
            capture_output=True,
            text=True,
        )
        if found.returncode:
            return found.stderr.strip().splitlines()[-1]
        snapshots = self._directory / "root/io.containerd.snapshotter.v1.overlayfs/snapshots"
        return max(snapshots.iterdir(), key=lambda path: int(path.name)) / "fs"


@contextmanager
def unpacker(directory: Path) -> Iterator[Unpacker]:
    """Start containerd below `directory`, and end it."""
    require(os.getuid() == 0, "root")
    require(shutil.which("containerd") and shutil.which("ctr"), "containerd (Debian: containerd)")
    (directory / "config.toml").write_text(_CONFIG.format(directory))
    argv = ["containerd", "--config", str(directory / "config.toml")]
    daemon = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert daemon.stderr is not None
    drain = threading.Thread(target=daemon.stderr.read)  # or containerd would stop when the pipe is full
    try:
        said = []
        for line in daemon.stderr:
            said.append(line.decode())
            if b"containerd successfully booted" in line:
                break
        else:
            raise AssertionError("containerd did not start:\n" + "".join(said[-10:]))
        drain.start()
        yield Unpacker(directory)
    finally:
        daemon.terminate()
        daemon.wait(20)
        if drain.is_alive():
            drain.join(20)
        daemon.stderr.close()


def _oci_archive(layers: list[bytes], name: str) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def put(path: str, content: bytes) -> None:
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))

        def blob(content: bytes, media_type: str) -> dict[str, object]:
            digest = hashlib.sha256(content).hexdigest()
            put(f"blobs/sha256/{digest}", content)
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

        put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        kind = "application/vnd.oci.image."
        manifest = {
            "schemaVersion": 2,
            "config": blob(json.dumps(config).encode(), kind + "config.v1+json"),
            "layers": [blob(gzip.compress(layer, 1, mtime=0), kind + "layer.v1.tar+gzip") for layer in layers],
        }
        described = blob(json.dumps(manifest).encode(), kind + "manifest.v1+json")
        described["annotations"] = {"io.containerd.image.name": f"docker.io/{name}"}
        put("index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())
    return out.getvalue()
