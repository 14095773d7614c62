"""Start-up traces on a supernode's disk: per image manifest what its starts touched, merged over nodes.

One msgpack file per manifest, ROOT/traces/<hex> (`tracemerge.Kept`). Files that no start asked for or added to in a
long time go, and the oldest ones when all together are too large.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiofiles
import aiofiles.os
import msgspec

from imgdist.errors import ProtocolError, UsageError
from imgdist.oci.reference import is_sha256
from imgdist.pack import FORMAT_VERSION
from imgdist.wire.control import TRACE_ENTRIES_MAX, TRACE_LAYERS_MAX, Trace
from supernode.tracemerge import ENTRY, KEPT_VERSION, Kept, merge, told

TRACE_MAX = TRACE_ENTRIES_MAX * ENTRY.size + TRACE_LAYERS_MAX * 80 + 128
"""Bytes of an encoded trace."""
UNUSED_S = 30 * 24 * 3600.0
"""A trace that nobody used for so long is of an image that nobody starts (a guess)."""
TOTAL_MAX = 256 << 20
"""Bytes of all traces together: a thousand images of 25,000 chunks each (a guess)."""
TOLD_KEPT = 8
"""Encoded traces kept in memory, at most 475 KB each: a crowd starts few images at once (a guess)."""

_T = TypeVar("_T", Trace, Kept)


def decode(raw: bytes) -> Trace:
    """Read and check a trace as a node sends it. Raises ProtocolError."""
    trace = _decoded(raw, Trace, FORMAT_VERSION)
    _check(trace.layers, trace.entries)
    return trace


def decode_kept(raw: bytes) -> Kept:
    """Read and check a file's content. Raises ProtocolError."""
    kept = _decoded(raw, Kept, KEPT_VERSION)
    _check(kept.layers, kept.entries)
    if len(kept.weights) * ENTRY.size != len(kept.entries) * 4 or len(kept.totals) != len(kept.layers):
        raise ProtocolError(
            f"trace: {len(kept.weights)} bytes of weights for {len(kept.entries)} of entries, "
            f"{len(kept.totals)} totals for {len(kept.layers)} layers"
        )
    return kept


def _decoded(raw: bytes, kind: type[_T], version: int) -> _T:
    try:
        found = msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"trace: {error}") from None
    if found.v != version:
        raise ProtocolError(f"trace has format version {found.v}; expected {version}")
    return found


def _check(layers: tuple[str, ...], entries: bytes) -> None:
    if len(layers) > TRACE_LAYERS_MAX or not all(map(is_sha256, layers)):
        raise ProtocolError(f"trace: expected at most {TRACE_LAYERS_MAX} layers named by sha256 digests")
    if len(entries) % ENTRY.size or len(entries) > TRACE_ENTRIES_MAX * ENTRY.size:
        raise ProtocolError(f"trace: {len(entries)} bytes of entries; expected at most {TRACE_ENTRIES_MAX} of 6")
    if any(layer >= len(layers) for layer, _ in ENTRY.iter_unpack(entries)):
        raise ProtocolError(f"trace: an entry names a layer beyond the {len(layers)} listed")


def _encoded(kept: Kept) -> bytes:
    return msgspec.msgpack.encode(told(kept))


class Traces:
    """The traces under one directory, which exists. `clock` is the file system's: seconds since 1970."""

    def __init__(self, directory: Path, *, total_max: int = TOTAL_MAX, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._total_max = total_max
        self._clock = clock
        # Two nodes that report one start together must not each merge into the old trace: the later would win.
        self._writing = asyncio.Lock()
        # A crowd that starts one image reads and decodes its trace once [measured: 25,000 chunks take 17 ms, and the
        # event loop has to answer everybody]. Held while a file is read or replaced, so that nothing stale is kept.
        self._reading = asyncio.Lock()
        self._told: dict[str, bytes] = {}  # asked for last at the end

    def exists(self, manifest_digest: str) -> bool:
        """Whether there is a trace of the image."""
        return is_sha256(manifest_digest) and self._path(manifest_digest).exists()

    async def get(self, manifest_digest: str) -> bytes | None:
        """The encoded trace for the next start of an image, None if there is none."""
        path = self._path(manifest_digest)
        async with self._reading:
            raw = self._told.pop(manifest_digest, None)
            if raw is None:
                kept = await self._kept(manifest_digest)
                if kept is None:
                    return None
                raw = await asyncio.to_thread(_encoded, kept)
            now = self._clock()
            try:
                os.utime(path, (now, now))
            except FileNotFoundError:  # swept away meanwhile
                return None
            self._told[manifest_digest] = raw
            if len(self._told) > TOLD_KEPT:
                del self._told[next(iter(self._told))]
            return raw

    async def put(self, manifest_digest: str, raw: bytes) -> Trace:
        """Count a node's report in; what the next start is told. Raises ProtocolError, and changes nothing, if it is
        malformed."""
        path, new = self._path(manifest_digest), await asyncio.to_thread(decode, raw)
        async with self._writing:
            merged = await asyncio.to_thread(merge, await self._kept(manifest_digest), new)
            fresh = path.with_suffix(".new")
            async with aiofiles.open(fresh, "wb") as file:
                await file.write(msgspec.msgpack.encode(merged))
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            async with self._reading:
                await aiofiles.os.replace(fresh, path)
                self._told.pop(manifest_digest, None)
            await asyncio.to_thread(self._sweep, path)
        return await asyncio.to_thread(told, merged)

    def _sweep(self, newest: Path) -> None:
        """Remove what nobody uses, then the longest unused beyond the bound; never what was just written."""
        found = sorted(
            ((status.st_mtime, status.st_size, path) for path in self._directory.iterdir() if (status := path.stat())),
            reverse=True,
        )
        total = 0
        for used_at, size, path in found:
            total += size
            if path != newest and (total > self._total_max or self._clock() - used_at > UNUSED_S):
                path.unlink(missing_ok=True)

    async def _kept(self, manifest_digest: str) -> Kept | None:
        try:
            async with aiofiles.open(self._path(manifest_digest), "rb") as file:
                return await asyncio.to_thread(decode_kept, await file.read())
        except (FileNotFoundError, ProtocolError):  # none, of another version, damaged: a trace is a hint, start over
            return None

    def _path(self, manifest_digest: str) -> Path:
        if not is_sha256(manifest_digest):
            raise UsageError(f"manifest digest {manifest_digest[:80]!r}: expected sha256: and 64 hex digits")
        return self._directory / manifest_digest.removeprefix("sha256:")
