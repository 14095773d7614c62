"""OCI images made on this machine: a layout directory, byte for byte the same from the same trees."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
# When images that we make were built, unless told otherwise: 2026-01-01T00:00:00Z.
EPOCH_S = 1_767_225_600
GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Blob:
    """A descriptor: OCI media type, "sha256:<hex>", size in bytes."""

    media_type: str
    digest: str
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}


@dataclass(frozen=True)
class Image:
    """An image in an OCI layout directory (blobs/sha256/<hex>, index.json)."""

    directory: Path
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def layers_bytes(self) -> int:
        """Sum of the compressed layers."""
        return sum(layer.size_bytes for layer in self.layers)

    def path(self, blob: Blob) -> Path:
        return self.directory / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")

    def manifest_bytes(self, mark: str = "") -> bytes:
        """The manifest as pushed. A `mark` becomes an annotation: same layers, another digest and so trace."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.config.as_json(),
            "layers": [layer.as_json() for layer in self.layers],
        }
        if mark:
            document["annotations"] = {"org.opencontainers.image.version": mark}
        return encode(document)


def encode(document: Any) -> bytes:
    """Canonical JSON: sorted keys, no blanks."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class ImageWriter:
    """Writes layers one after another into a new layout directory; `finish` adds configuration and manifest.

    `level`: of gzip. `built_s`: the time of building that the configuration names, seconds since 1970.
    """

    def __init__(self, directory: Path, *, level: int = 6, built_s: int = EPOCH_S) -> None:
        self._directory = directory
        self._level = level
        self._built = f"{datetime.fromtimestamp(built_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
        self._layers: list[Blob] = []
        self._diff_ids: list[str] = []
        self._history: list[dict[str, Any]] = []
        (directory / "blobs" / "sha256").mkdir(parents=True)

    def add_layer(self, created_by: str, fill: Callable[[tarfile.TarFile], None]) -> Blob:
        """One layer: `fill` adds members to an open tar, in the order in which they shall stand."""
        temporary = self._directory / "layer.part"
        with temporary.open("wb") as file:
            packed = _Hashing(file)
            # No name and no time in the gzip header, so that it depends on the content alone.
            with gzip.GzipFile("", "wb", self._level, packed, mtime=0) as compressor:
                plain = _Hashing(compressor)
                with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                    fill(tar)
        blob = self._adopt(temporary, LAYER_TYPE, packed)
        self._layers.append(blob)
        self._diff_ids.append(plain.digest)
        self._history.append({"created": self._built, "created_by": created_by})
        return blob

    def finish(self, *, command: Sequence[str], environment: Sequence[str] = ()) -> Image:
        """Write configuration, manifest and index. `command` is what `ctr run` starts when not told otherwise."""
        config = self._put(
            CONFIG_TYPE,
            encode(
                {
                    "architecture": GO_ARCHITECTURES.get(platform.machine(), platform.machine()),
                    "os": "linux",
                    "created": self._built,
                    "config": {"Cmd": list(command), "Env": list(environment), "WorkingDir": "/"},
                    "rootfs": {"type": "layers", "diff_ids": self._diff_ids},
                    "history": self._history,
                }
            ),
        )
        draft = Image(self._directory, config, config, tuple(self._layers))
        manifest = self._put(MANIFEST_TYPE, draft.manifest_bytes())
        (self._directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self._directory / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": [manifest.as_json()]}))
        return Image(self._directory, manifest, config, tuple(self._layers))

    def _put(self, media_type: str, content: bytes) -> Blob:
        blob = Blob(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
        (self._directory / "blobs" / "sha256" / blob.digest[7:]).write_bytes(content)
        return blob

    def _adopt(self, file: Path, media_type: str, written: _Hashing) -> Blob:
        blob = Blob(media_type, written.digest, written.size_bytes)
        file.rename(self._directory / "blobs" / "sha256" / blob.digest[7:])
        return blob


def load_image(directory: Path) -> Image:
    """The image of a layout directory that ImageWriter finished."""

    def blob(entry: dict[str, Any]) -> Blob:
        return Blob(entry["mediaType"], entry["digest"], entry["size"])

    manifest = blob(json.loads((directory / "index.json").read_bytes())["manifests"][0])
    document = json.loads((directory / "blobs" / "sha256" / manifest.digest[7:]).read_bytes())
    return Image(directory, manifest, blob(document["config"]), tuple(blob(entry) for entry in document["layers"]))


def member(name: str, **attributes: Any) -> tarfile.TarInfo:
    """A tar member with the epoch as its time, owned by root; `attributes` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.mtime = EPOCH_S
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """A regular file."""
    tar.addfile(member(name, size=len(content), mode=mode), io.BytesIO(content))


def tiny_image(directory: Path, busybox: Path = Path("/bin/busybox")) -> Image:
    """Three layers of a few MB for tests: busybox with its links, a file to be removed, data with a whiteout.

    `/bin/sh`, `/bin/true`, `/bin/cat`, `/bin/ls`, `/bin/sleep` run; `/data` is 1 MiB; `/etc/gone` is whited out.
    `busybox` must be statically linked (Debian: busybox-static).
    """
    writer = ImageWriter(directory, level=1)

    def base(tar: tarfile.TarFile) -> None:
        for name in ("bin", "dev", "etc", "proc", "sys"):
            tar.addfile(member(name, type=tarfile.DIRTYPE, mode=0o755))
        add_file(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        for name in ("cat", "echo", "ls", "sh", "sleep", "true"):
            tar.addfile(member(f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox", mode=0o777))
        add_file(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        add_file(tar, "etc/group", b"root:x:0:\n")

    def extra(tar: tarfile.TarFile) -> None:
        add_file(tar, "etc/gone", b"removed by the next layer\n")

    def data(tar: tarfile.TarFile) -> None:
        add_file(tar, "data", b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(1 << 15)))
        add_file(tar, "etc/.wh.gone", b"")

    writer.add_layer("busybox", base)
    writer.add_layer("a file", extra)
    writer.add_layer("data", data)
    return writer.finish(command=["/bin/sh"], environment=["PATH=/bin"])


class _Hashing:
    """A file-like sink that counts and hashes what passes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"
