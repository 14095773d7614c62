"""Real containerds that unpack layers with their overlayfs snapshotter: the measure for what imgdist mounts.

Layers are handed to containerd's content, snapshots and diff services, as its own clients do it for a pull; one daemon
serves any number of images, and says of each layer by itself whether it takes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from integration.proto import unpack_pb2 as pb
from parts import require

from agent.layers import mount
from agent.snapshotter.proto import snapshots_pb2 as snapshots
from imgdist.demo.containerd import Install, installs

_CONFIG = """version = 2
root = "{0}/r"
state = "{0}/s"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{0}/c"
[ttrpc]
  address = "{0}/t"
"""
_CALL_S = 60.0
_MESSAGE = 8 << 20  # containerd takes 16 MiB
_STAT, _WRITE, _COMMIT = range(3)
_LEASE = "unpacking"  # keeps containerd's garbage collector away
_METADATA = (("containerd-namespace", "test"), ("containerd-lease", _LEASE))
_KIND = "application/vnd.docker.image.rootfs.diff.tar"  # containerd tells the compression by the bytes


@dataclass
class Refused(Exception):
    """containerd does not take this layer of the image (counted from 0), and says why."""

    layer: int
    reason: str


class Unpacker:
    """A client of one containerd; `version` as in "2.4.2"."""

    def __init__(self, directory: Path, version: str) -> None:
        self.version = version
        self._directory = directory
        self._channel = grpc.insecure_channel(f"unix://{directory}/c")
        self._count = 0
        self._call("leases.v1.Leases/Create", pb.CreateLeaseRequest(id=_LEASE), Empty)

    def close(self) -> None:
        self._channel.close()

    @contextmanager
    def shown(self, layers: Sequence[bytes]) -> Iterator[Path]:
        """What a container of an image of these layers (tars, compressed or not) sees. Raises Refused."""
        with self._unpacked(layers) as top, ExitStack() as undo:
            look = f"{top}-look"
            mounts = self._prepare(look, top)
            undo.callback(self._remove, look)
            at = self._directory / "m"
            at.mkdir(exist_ok=True)
            assert [one.type for one in mounts] == ["overlay"], mounts
            mount.mount("overlay", str(at), "overlay", 0, ",".join(mounts[0].options))
            undo.callback(mount.umount, str(at))
            yield at

    @contextmanager
    def directory(self, layers: Sequence[bytes]) -> Iterator[Path]:
        """The directory where it has unpacked the last layer, whiteouts and all. Raises Refused."""
        with self._unpacked(layers):
            found = self._directory / "r/io.containerd.snapshotter.v1.overlayfs/snapshots"
            yield max(found.iterdir(), key=lambda path: int(path.name)) / "fs"

    @contextmanager
    def _unpacked(self, layers: Sequence[bytes]) -> Iterator[str]:
        with ExitStack() as undo:
            name = ""
            for number, layer in enumerate(layers):
                self._count += 1
                key, parent, name = f"e{self._count}", name, f"l{self._count}"
                mounts = self._prepare(key, parent)
                try:
                    self._apply(layer, mounts)
                except grpc.RpcError as error:
                    self._remove(key)
                    raise Refused(number, error.details()) from None  # type: ignore[attr-defined]
                self._commit(key, name)
                undo.callback(self._remove, name)
            yield name

    def _prepare(self, key: str, parent: str) -> Any:
        request = snapshots.PrepareSnapshotRequest(snapshotter="overlayfs", key=key, parent=parent)
        return self._snapshots("Prepare", request, snapshots.PrepareSnapshotResponse).mounts

    def _commit(self, key: str, name: str) -> None:
        request = snapshots.CommitSnapshotRequest(snapshotter="overlayfs", key=key, name=name)
        self._snapshots("Commit", request, Empty)

    def _remove(self, key: str) -> None:
        self._snapshots("Remove", snapshots.RemoveSnapshotRequest(snapshotter="overlayfs", key=key), Empty)

    def _apply(self, layer: bytes, mounts: Any) -> None:
        digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        self._store(layer, digest)
        request = pb.ApplyRequest(
            diff=pb.Descriptor(media_type=_KIND, digest=digest, size=len(layer)),
            mounts=[pb.Mount.FromString(one.SerializeToString()) for one in mounts],
        )
        self._call("diff.v1.Diff/Apply", request, pb.ApplyResponse)

    def _store(self, blob: bytes, digest: str) -> None:
        def messages() -> Iterator[Any]:
            for at in range(0, len(blob) or 1, _MESSAGE):
                last = at + _MESSAGE >= len(blob)
                yield pb.WriteContentRequest(
                    action=_COMMIT if last else _WRITE,
                    ref=digest,
                    total=len(blob),
                    expected=digest if last else "",
                    offset=at,
                    data=blob[at : at + _MESSAGE],
                )

        method = self._channel.stream_stream(
            "/containerd.services.content.v1.Content/Write",
            pb.WriteContentRequest.SerializeToString,
            pb.WriteContentResponse.FromString,
        )
        try:
            for _ in method(messages(), timeout=_CALL_S, metadata=_METADATA):
                pass
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ALREADY_EXISTS:  # type: ignore[attr-defined]
                raise

    def _snapshots(self, method: str, request: Any, response: Any) -> Any:
        return self._call(f"snapshots.v1.Snapshots/{method}", request, response)

    def _call(self, method: str, request: Any, response: Any) -> Any:
        path = f"/containerd.services.{method}"
        call = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        return call(request, timeout=_CALL_S, metadata=_METADATA)


@contextmanager
def unpackers(directory: Path) -> Iterator[list[Unpacker]]:
    """Every containerd of this machine, started below `directory`, and ended."""
    require(os.getuid() == 0, "root")
    found = installs()
    require(len(found) > 1 or not os.environ.get("CI"), "two versions of containerd (scripts/parts test)")
    require(found, "containerd (Debian: containerd)")
    with ExitStack() as running:
        yield [running.enter_context(_daemon(directory / f"c{number}", one)) for number, one in enumerate(found)]


@contextmanager
def _daemon(directory: Path, install: Install) -> Iterator[Unpacker]:
    directory.mkdir()
    (directory / "config.toml").write_text(_CONFIG.format(directory))
    argv = [install.directory / "containerd", "--config", directory / "config.toml"]
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
        client = Unpacker(directory, install.version)
        yield client
        client.close()
    finally:
        daemon.terminate()
        daemon.wait(20)
        if drain.is_alive():
            drain.join(20)
        daemon.stderr.close()
        shutil.rmtree(directory)
