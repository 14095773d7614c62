"""Start-up traces: per image manifest, the chunks that starts touched, in order, merged over nodes.

One msgpack file per manifest, ROOT/traces/<hex>. The first node's order stays; what later starts touched besides is
appended, up to a bound.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import aiofiles
import aiofiles.os
import msgspec

from imgdist.errors import ProtocolError, UsageError
from imgdist.oci.reference import is_sha256
from imgdist.pack import FORMAT_VERSION
from imgdist.wire.control import TRACE_ENTRIES_MAX, TRACE_LAYERS_MAX, Trace

ENTRY = struct.Struct("<HI")
TRACE_MAX = TRACE_ENTRIES_MAX * ENTRY.size + TRACE_LAYERS_MAX * 80 + 64
"""Bytes of an encoded trace."""


def decode(raw: bytes) -> Trace:
    """Read and check a trace. Raises ProtocolError."""
    try:
        trace = msgspec.msgpack.decode(raw, type=Trace)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"trace: {error}") from None
    if trace.v != FORMAT_VERSION:
        raise ProtocolError(f"trace has format version {trace.v}; expected {FORMAT_VERSION}")
    if len(trace.layers) > TRACE_LAYERS_MAX or not all(map(is_sha256, trace.layers)):
        raise ProtocolError(f"trace: expected at most {TRACE_LAYERS_MAX} layers named by sha256 digests")
    if len(trace.entries) % ENTRY.size or len(trace.entries) > TRACE_ENTRIES_MAX * ENTRY.size:
        raise ProtocolError(f"trace: {len(trace.entries)} bytes of entries; expected at most {TRACE_ENTRIES_MAX} of 6")
    if any(layer >= len(trace.layers) for layer, _ in ENTRY.iter_unpack(trace.entries)):
        raise ProtocolError(f"trace: an entry names a layer beyond the {len(trace.layers)} listed")
    return trace


def merge(first: Trace | None, second: Trace) -> Trace:
    """`first`, then the chunks of `second` that it lacks; each chunk once, bounded. Idempotent."""
    numbers: dict[str, int] = {}
    seen: dict[tuple[int, int], None] = {}
    for trace in filter(None, (first, second)):
        for layer, chunk in ENTRY.iter_unpack(trace.entries):
            digest = trace.layers[layer]
            if digest not in numbers and len(numbers) == TRACE_LAYERS_MAX:
                continue
            seen[numbers.setdefault(digest, len(numbers)), chunk] = None
    entries = b"".join(ENTRY.pack(*entry) for entry, _ in zip(seen, range(TRACE_ENTRIES_MAX), strict=False))
    return Trace(FORMAT_VERSION, tuple(numbers), entries)


class Traces:
    """The traces under one directory, which exists."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Two nodes that report one start together must not each merge into the old trace: the later would win.
        self._writing = asyncio.Lock()

    def exists(self, manifest_digest: str) -> bool:
        """Whether there is a trace of the image."""
        return is_sha256(manifest_digest) and self._path(manifest_digest).exists()

    async def get(self, manifest_digest: str) -> bytes | None:
        """The encoded trace of an image, None if there is none."""
        try:
            async with aiofiles.open(self._path(manifest_digest), "rb") as file:
                return await file.read()
        except FileNotFoundError:
            return None

    async def put(self, manifest_digest: str, raw: bytes) -> Trace:
        """Merge a node's trace into the image's. Raises ProtocolError, and changes nothing, if it is malformed."""
        path, new = self._path(manifest_digest), decode(raw)
        async with self._writing:
            merged = merge(await self._kept(manifest_digest), new)
            fresh = path.with_suffix(".new")
            async with aiofiles.open(fresh, "wb") as file:
                await file.write(msgspec.msgpack.encode(merged))
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            await aiofiles.os.replace(fresh, path)
        return merged

    async def _kept(self, manifest_digest: str) -> Trace | None:
        raw = await self.get(manifest_digest)
        try:
            return decode(raw) if raw is not None else None
        except ProtocolError:  # of another format version, or damaged: a trace is only a hint, start over
            return None

    def _path(self, manifest_digest: str) -> Path:
        if not is_sha256(manifest_digest):
            raise UsageError(f"manifest digest {manifest_digest[:80]!r}: expected sha256: and 64 hex digits")
        return self._directory / manifest_digest.removeprefix("sha256:")
