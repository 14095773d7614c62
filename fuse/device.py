"""The raw transport: /dev/fuse itself. Each thread reads requests into its slot of the shared memory and answers.

No thread ever waits for a chunk: a request is answered, or parked before its slot is freed. The descriptor belongs to
the holder, so the session outlives this process; whatever was read and not answered stands in slots and table.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Iterable

from fuse import protocol
from fuse.protocol import Buffer
from fuse.slots import SLOTS, Slots
from fuse.view import View
from imgdist.errors import ProtocolError

log = logging.getLogger("imgdist.view")

_TRY_AGAIN = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})  # ENOENT: the request was interrupted as we read it


class KernelReplies:
    """Answers written to the FUSE descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def data(self, unique: int, *pieces: Buffer) -> None:
        self._write(protocol.data_header(unique, sum(map(len, pieces))), *pieces)

    def error(self, unique: int, number: int) -> None:
        self._write(protocol.error_reply(unique, number))

    def entry(self, unique: int, node: int, size: int) -> None:
        self._write(protocol.entry_reply(unique, node, size))

    def attr(self, unique: int, node: int, size: int) -> None:
        self._write(protocol.attr_reply(unique, node, size))

    def opened(self, unique: int, node: int) -> None:
        self._write(protocol.open_reply(unique, node))

    def listing(self, unique: int, entries: Iterable[tuple[int, bytes]], offset: int, size: int) -> None:
        self._write(protocol.readdir_reply(unique, entries, offset, size))

    def statfs(self, unique: int, blocks: int, files: int) -> None:
        self._write(protocol.statfs_reply(unique, blocks, files))

    def accept(self, unique: int, init: protocol.Init) -> None:
        """Answer INIT."""
        self._write(protocol.init_reply(unique, init))

    def ask_again(self) -> bool:
        """Have the kernel queue again what was read and not answered; False where it cannot (before Linux 6.9)."""
        try:
            os.write(self._fd, protocol.resend_notice())
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _write(self, *pieces: Buffer) -> None:
        try:
            os.writev(self._fd, pieces)
        except OSError as error:
            # ENOENT: interrupted, or answered by our predecessor. ENODEV: the session is over; the read says so too.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


class Device:
    """The device loop over the slots."""

    def __init__(self, fd: int, slots: Slots, replies: KernelReplies, view: View) -> None:
        self._fd, self._slots, self._replies, self._view = fd, slots, replies, view

    def adopt(self) -> int:
        """Take over what a predecessor's slots hold; before `serve`. Returns how many requests that were."""
        buffer = memoryview(bytearray(protocol.MAX_READ))
        adopted = 0
        for index in range(SLOTS):
            slot = self._slots.slot(index)
            try:
                request = protocol.slot_request(slot)
            except ProtocolError as error:
                log.error("request slot %d: %s; dropped", index, error)
                request = b""
            if request:
                self._process(request, buffer)
                adopted += 1
            protocol.free_slot(slot)
        return adopted

    def serve(self, index: int) -> None:
        """Answer requests through slot `index` until the session ends (unmounted or aborted)."""
        slot = self._slots.slot(index)
        buffer = memoryview(mmap.mmap(-1, protocol.MAX_READ))  # its pages exist once a read needs them
        vector = [slot]
        while True:
            try:
                count = os.readv(self._fd, vector)
            except OSError as error:
                if error.errno in _TRY_AGAIN:
                    continue
                if error.errno == errno.ENODEV:
                    return
                raise
            self._process(slot[:count], buffer)
            protocol.free_slot(slot)

    def _process(self, data: Buffer, buffer: memoryview) -> None:
        try:
            request = protocol.parse_request(data)
            if request.opcode == protocol.INIT:
                self._replies.accept(request.unique, protocol.parse_init(data))
            elif request.opcode not in protocol.NO_REPLY:
                self._view.handle(request, buffer)
        except Exception as error:  # one request that we cannot handle must not end, or hang, those of all layers
            self._view.notes.failure("internal", "unknown", f"request {bytes(data[:80]).hex()}: {error!r}; EIO")
            if (unique := protocol.unique_of(data)) is not None:
                self._replies.error(unique, errno.EIO)
