"""A registry on loopback that misbehaves on request, with a log of what it was asked."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import ssl
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

RegistryT = TypeVar("RegistryT", bound="FakeRegistry")
Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]


@dataclass
class FakeRegistry:
    """Blobs and manifests by digest, tags by "repository:tag". Each of `faults` may answer instead, once; the last
    word of a request's path selects nothing: a fault returns None to pass."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    ranges: bool = True
    log: list[Asked] = field(default_factory=list)
    host: str = ""

    def paths(self, method: str = "GET", part: str = "") -> list[str]:
        return [asked.path for asked in self.log if asked.method == method and part in asked.path]

    def add_blob(self, raw: bytes) -> str:
        digest = digest_of(raw)
        self.blobs[digest] = raw
        return digest

    def add_manifest(self, raw: bytes, media_type: str, tag: str | None = None, repository: str = "a/b") -> str:
        digest = digest_of(raw)
        self.manifests[digest] = (media_type, raw)
        if tag:
            self.tags[f"{repository}:{tag}"] = digest
        return digest

    def add_image(
        self,
        layers: list[bytes],
        tag: str | None = None,
        media_type: str = OCI_LAYER,
        diff_ids: list[str] | None = None,
        repository: str = "a/b",
    ) -> str:
        """Store gzip layers and their configuration; the manifest's digest."""
        if diff_ids is None:
            diff_ids = [digest_of(gzip.decompress(layer)) for layer in layers]
        config = json.dumps(
            {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": self.add_blob(config), "size": len(config)},
            "layers": [
                {"mediaType": media_type, "digest": self.add_blob(layer), "size": len(layer)} for layer in layers
            ],
        }
        return self.add_manifest(json.dumps(manifest).encode(), OCI_MANIFEST, tag, repository)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.log.append(Asked(request.method, request.path, dict(request.headers), dict(request.query)))
        for fault in list(self.faults):
            answer = await fault(request)
            if answer is not None:
                self.faults.remove(fault)
                return answer
        if self.always is not None:
            answer = await self.always(request)
            if answer is not None:
                return answer
        if request.path == "/v2/":
            return web.json_response({})
        repository, _, name = request.path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = repository.rpartition("/")
        if kind == "manifests":
            return self._manifest(repository, name)
        if kind == "blobs" and name in self.blobs:
            return self._blob(request, self.blobs[name])
        return not_found()

    def _manifest(self, repository: str, name: str) -> web.Response:
        digest = self.tags.get(f"{repository}:{name}", name)
        if digest not in self.manifests:
            return not_found()
        media_type, raw = self.manifests[digest]
        return web.Response(body=raw, content_type=media_type, headers={"Docker-Content-Digest": digest})

    def _blob(self, request: web.Request, raw: bytes) -> web.Response:
        asked = request.http_range
        if asked.start is None or not self.ranges:
            return web.Response(body=raw)
        if asked.start >= len(raw):
            return web.Response(status=416)
        part = raw[asked]
        span = f"bytes {asked.start}-{asked.start + len(part) - 1}/{len(raw)}"
        return web.Response(status=206, body=part, headers={"Content-Range": span})


def not_found() -> web.Response:
    return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such thing"}]}, status=404)


def cut_after(raw: bytes, size: int, part: str = "/blobs/") -> Fault:
    """Promise all of `raw`, send `size` bytes, drop the connection."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(raw))})
        await response.prepare(request)
        await response.write(raw[:size])
        assert request.transport is not None
        request.transport.close()
        return response

    return fault


def answer(status: int, part: str = "/v2/", body: bytes = b"", **headers: str) -> Fault:
    """Answer `status` to a request whose path has `part`."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        return web.Response(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return fault


@asynccontextmanager
async def serving(
    registry: RegistryT, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[RegistryT]:
    """The registry on a port of its own; `registry.host` is its "host:port". One on ::1 is on 127.0.0.1 as well, which
    may be all that localhost is."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", registry.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, 0, ssl_context=tls).start()
        if ":" in address:
            await web.TCPSite(runner, "127.0.0.1", runner.addresses[0][1], ssl_context=tls).start()
        registry.host = f"{f'[{address}]' if ':' in address else address}:{runner.addresses[0][1]}"
        yield registry
    finally:
        await runner.cleanup()


def held_back(raw: bytes, first: int) -> tuple[Fault, asyncio.Event]:
    """A fault of a registry that sends `first` bytes of a blob, and the rest when the event is set."""
    going_on = asyncio.Event()

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path or request.method != "GET":
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(raw))})
        await response.prepare(request)
        await response.write(raw[:first])
        await going_on.wait()
        await response.write(raw[first:])
        return response

    return fault, going_on


def tar(files: dict[str, bytes]) -> bytes:
    """A layer with regular files, the same bytes for the same files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def tar_gz(files: dict[str, bytes]) -> bytes:
    """The same as a gzip layer."""
    return gzip.compress(tar(files), mtime=0)
