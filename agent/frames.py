"""The encoded bodies of a layer's verified chunks, as they came: what peers are sent without being compressed again.

File layout, little-endian: [0:8] magic, [8:12] u32 version, [12:16] u32 clean flag, [16:52] boot id (ASCII), and if
clean [56:64] u64 end of the records, [64:72] u64 XXH3-64 of what follows them; from byte 4096 on records `<IBxxxIQ`
(number, encoding, length, XXH3-64 of the body), each followed by its body; if clean, then the rows as they were in
memory (u64 a chunk), so that a start need not read the records. The file is a cache: what is not there is sent raw.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import weakref
from array import array
from pathlib import Path

from xxhash import xxh3_64_intdigest

from fuse.present import current_boot_id
from imgdist.wire.messages import BODY_MAX, ENCODINGS

_log = logging.getLogger("imgdist.agent")

HEADER_SIZE = 4096
CHUNKS_MAX = 1 << 22
"""Chunks of a layer, as neighbours count them (imgdist.wire.mesh)."""

_MAGIC = b"IMGDFRMS"
_VERSION = 1
_HEADER = struct.Struct("<8sII36s4xQQ")
_RECORD = struct.Struct("<IBxxxIQ")
_NOBODY = "0" * 36  # no boot's id

# A row in one word: encoding from bit 62, length from bit 43, offset below: 8 TiB, and never 0, as the header is there.
_LENGTH_AT, _ENCODING_AT = 43, 62
assert BODY_MAX < 1 << (_ENCODING_AT - _LENGTH_AT)


class Frames:
    """An append-only log of bodies. Thread-safe. Its descriptor lives as long as it is referenced, so that an upload
    goes on whatever happens to the file.

    Within one boot the page cache vouches for what was written, over a clean mark the disk does; else it starts empty.
    """

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Open or make the file. Raises OSError."""
        self._path = path
        self._boot_id = boot_id or current_boot_id()
        self._lock = threading.Lock()
        self._rows = array("Q")
        self._end = HEADER_SIZE
        self._off = self._begun = False
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self.fd)
        header = os.pread(self.fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        magic, version, clean, boot, end, digest = _HEADER.unpack(header)
        ours = boot == self._boot_id.encode("ascii")
        if (magic, version) == (_MAGIC, _VERSION) and (ours or clean):
            if not (clean and self._load_rows(end, digest)):
                self._scan(end if clean else os.fstat(self.fd).st_size)
            self._begun = ours and not clean
        elif os.fstat(self.fd).st_size:
            os.ftruncate(self.fd, 0)

    @property
    def size_bytes(self) -> int:
        """What the file takes, header included."""
        return self._end

    def find(self, number: int) -> tuple[int, int, int] | None:
        """(offset, length, encoding) of a chunk's body in the file, or None."""
        try:
            row = self._rows[number]
        except IndexError:
            return None
        if not row:
            return None
        return (
            row & (1 << _LENGTH_AT) - 1,
            row >> _LENGTH_AT & (1 << _ENCODING_AT - _LENGTH_AT) - 1,
            row >> _ENCODING_AT,
        )

    def append(self, number: int, encoding: int, body: bytes | bytearray | memoryview) -> None:
        """Keep a verified chunk's body, once; one without (zeros) needs none. Never raises OSError: on a full disk
        nothing more is kept."""
        record = _RECORD.pack(number, encoding, len(body), xxh3_64_intdigest(body))
        with self._lock:  # one record after the other: a crash tears the last one only
            if self._off or not body or number >= CHUNKS_MAX or self.find(number) is not None:
                return
            try:
                self._begin()
                offset = self._end
                self._write([record, memoryview(body)], offset)
            except OSError as error:
                self._turn_off(error)
                return
            self._end = offset + _RECORD.size + len(body)
            self._note(number, offset + _RECORD.size, len(body), encoding)

    def close(self, clean: bool) -> None:
        """Keep nothing more. `clean`: sync what is there, so that any boot trusts it. Never raises OSError."""
        with self._lock:
            if self._off:
                return
            self._off = True
            if not clean or not self._begun:
                return
            try:
                rows = self._rows.tobytes()
                self._write([rows], self._end)
                os.fdatasync(self.fd)
                self._write_header(self._boot_id, self._end, xxh3_64_intdigest(rows))
                os.fdatasync(self.fd)
            except OSError as error:
                _log.warning("%s cannot be synced, a reboot will empty it: %s", self._path, error)
                self._forsake()

    def discard(self) -> None:
        """Keep nothing more and remove the file; its space is free once no upload reads it. Raises OSError."""
        self.close(clean=False)
        self._path.unlink(missing_ok=True)

    def _begin(self) -> None:
        """On disk before the first new record can get there: a power cut must not find `clean` over torn bytes."""
        if not self._begun:
            self._write_header(self._boot_id)
            os.ftruncate(self.fd, self._end)  # no rows behind the records any more
            os.fdatasync(self.fd)
            self._begun = True

    def _write_header(self, boot_id: str, end: int = 0, digest: int = 0) -> None:
        """Clean, if the end of the records is given."""
        os.pwrite(self.fd, _HEADER.pack(_MAGIC, _VERSION, end > 0, boot_id.encode("ascii"), end, digest), 0)

    def _write(self, parts: list[bytes | memoryview], offset: int) -> None:
        left = sum(map(len, parts))
        written = os.pwritev(self.fd, parts, offset)
        while (left := left - written) > 0:  # near a full disk it takes less, and says so the next time
            offset += written
            data = b"".join(parts)
            written = os.pwrite(self.fd, data[-left:], offset)

    def _turn_off(self, error: OSError) -> None:
        self._off = True
        _log.warning("%s: no more bodies are kept for peers, they get raw chunks: %s", self._path, error)
        try:
            os.ftruncate(self.fd, self._end)
        except OSError:  # the torn record has no row here, and is cut at the next start
            _log.debug("%s: its torn end stays", self._path)

    def _forsake(self) -> None:
        try:
            self._write_header(_NOBODY)
        except OSError as error:
            _log.error("%s is not trustworthy and cannot be marked so: %s", self._path, error)
            self._path.unlink(missing_ok=True)

    def _note(self, number: int, offset: int, length: int, encoding: int) -> None:
        if number >= len(self._rows):
            self._rows.extend([0] * (number + 1 - len(self._rows)))
        self._rows[number] = offset | length << _LENGTH_AT | encoding << _ENCODING_AT

    def _load_rows(self, end: int, digest: int) -> bool:
        """Take the rows as a clean stop left them; False if they are not there."""
        size = os.fstat(self.fd).st_size - end
        if end < HEADER_SIZE or not 0 <= size <= CHUNKS_MAX * self._rows.itemsize or size % self._rows.itemsize:
            return False
        rows = os.pread(self.fd, size, end)
        if xxh3_64_intdigest(rows) != digest:
            return False
        self._rows.frombytes(rows)
        self._end = end
        return True

    def _scan(self, end: int) -> None:
        """Read the records' heads. What was being written when the process died is cut off."""
        size = min(end, os.fstat(self.fd).st_size)
        while (record := self._record_at(self._end, size)) is not None:
            number, encoding, length, digest = record
            body_at = self._end + _RECORD.size
            if body_at + length == size and xxh3_64_intdigest(os.pread(self.fd, length, body_at)) != digest:
                break
            if self.find(number) is None:
                self._note(number, body_at, length, encoding)
            self._end = body_at + length
        os.ftruncate(self.fd, self._end)

    def _record_at(self, offset: int, size: int) -> tuple[int, int, int, int] | None:
        """(number, encoding, length, hash) of the record there; None where no whole record is."""
        head = os.pread(self.fd, _RECORD.size, offset)
        if len(head) < _RECORD.size:
            return None
        number, encoding, length, digest = _RECORD.unpack(head)
        if number >= CHUNKS_MAX or encoding >= ENCODINGS or not 0 < length <= BODY_MAX:
            return None
        return (number, encoding, length, digest) if offset + _RECORD.size + length <= size else None
