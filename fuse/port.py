"""The view's side of the agent channel, and its clock: one thread that accepts, receives, sends and expires.

One agent at a time; a new one replaces the old. The ring is the agent's own memory, sent with its hello, and is looked
at only while a Ready is handled: two agents that overlap during an upgrade never write into each other's buffers.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
import socket
import time
from collections.abc import Callable

from fuse import channel
from fuse.channel import Ack, Added, Hello, Removed
from fuse.layer import Layer
from fuse.outbox import Outbox
from fuse.view import View
from imgdist.errors import CorruptError, NewerFormatError, ProtocolError

log = logging.getLogger("imgdist.view")

_FLUSH_S = 0.1  # a trace entry is at most this old when it leaves
_EXPIRY_CHECKS, _EXPIRY_CHECK_S = 20, 0.25  # a deadline is kept to within 1/20 of itself, and 0.25 s at most
_FDS_MAX = 4


class Port:
    """The loop of the view's main thread."""

    def __init__(
        self,
        listener: socket.socket,
        outbox: Outbox,
        view: View,
        deadline_s: float,
        parent: int,
        on_synced: Callable[[], None] = lambda: None,
    ) -> None:
        """`deadline_s` 0 waits for ever; `parent` turns readable when the process that started us is gone;
        `on_synced` is called whenever an agent has named all its layers."""
        self._on_synced = on_synced
        self._listener, self._outbox, self._view, self._parent = listener, outbox, view, parent
        self._deadline_ns = int(deadline_s * 1e9)
        self._check_s = min(deadline_s / _EXPIRY_CHECKS, _EXPIRY_CHECK_S)
        self._flush_at: float | None = None
        self._check_at = 0.0
        self._agent: socket.socket | None = None
        self._poll = select.poll()
        for fd in (listener.fileno(), outbox.bell, parent):
            self._poll.register(fd, select.POLLIN)
        self._watched: tuple[int, int] | None = None  # the agent's descriptor, and for what
        self._ring: memoryview | None = None
        listener.setblocking(False)

    def run(self) -> None:
        """Serve until the parent is gone."""
        while True:
            self._watch()
            timeout_s = self._timeout_s(time.monotonic())
            events = dict(self._poll.poll(None if timeout_s is None else timeout_s * 1000))
            if self._parent in events:
                return
            self._serve(events)
            self._keep_time(time.monotonic())

    def close(self) -> None:
        """Leave the agent."""
        self._leave()

    def _watch(self) -> None:
        """Look at the agent's connection from now on, if that is not so already."""
        wanted = None if self._agent is None else (self._agent.fileno(), self._outbox.events)
        if wanted == self._watched:
            return
        if self._watched is not None:
            self._poll.unregister(self._watched[0])
        if wanted is not None:
            self._poll.register(*wanted)
        self._watched = wanted

    def _serve(self, events: dict[int, int]) -> None:
        if self._outbox.bell in events:
            self._outbox.hush()
            if self._flush_at is None:
                self._flush_at = time.monotonic() + _FLUSH_S
        if self._agent is not None and self._agent.fileno() in events:
            self._outbox.flush()
            self._receive(self._agent)
        if self._listener.fileno() in events:
            self._accept()

    def _timeout_s(self, now: float) -> float | None:
        due = [] if self._flush_at is None else [self._flush_at]
        if self._deadline_ns and len(self._view.parking):
            due.append(self._check_at)
        return max(0.0, min(due) - now) if due else None

    def _keep_time(self, now: float) -> None:
        notes = self._view.notes
        if self._flush_at is not None and (now >= self._flush_at or notes.touched_waiting >= channel.TOUCHED_MAX):
            self._flush_at = None
            self._view.flush_notes()
        if self._deadline_ns and now >= self._check_at:
            self._check_at = now + self._check_s
            self._view.expire(self._deadline_ns)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # it hung up before we came
            log.warning("agent did not wait to be accepted: %s", error)
            return
        connection.setblocking(False)
        if self._agent is not None:
            log.warning("another agent connects: the one before it is dropped")
            self._leave()
        self._agent = connection

    def _leave(self) -> None:
        self._outbox.connect(None)
        self._view.agent_gone()
        if self._agent is not None:
            self._agent.close()
        self._agent = self._ring = None

    def _receive(self, agent: socket.socket) -> None:
        """Handle all that has come. A fault of our own is not taken for the agent's: it ends this process."""
        while self._agent is agent:
            try:
                data, fds, _, _ = socket.recv_fds(agent, channel.MESSAGE_MAX, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("agent left: %s", error)
                data, fds = b"", []
            if not data:  # it stopped, or the holder says why it died
                self._leave()
                return
            try:
                self._take(agent, data, fds)
            except ProtocolError as error:
                log.warning("agent is dropped: %s", error)
                self._leave()

    def _take(self, agent: socket.socket, data: bytes, fds: list[int]) -> None:
        """Handle one message; descriptors that it should not have brought are closed."""
        try:
            message = channel.decode(data)
            if self._ring is None:
                self._greet(agent, message, fds)
            elif isinstance(message, channel.Add):
                self._add(message, fds)
            else:
                self._dispatch(message)
        finally:
            for fd in fds:
                os.close(fd)

    def _greet(self, agent: socket.socket, message: channel.Message, fds: list[int]) -> None:
        if not isinstance(message, Hello) or len(fds) != 1:
            raise ProtocolError(f"view channel: expected a hello with the ring's descriptor, got {message}")
        if message.version < channel.OLDEST:
            raise ProtocolError(f"view channel: expected version {channel.OLDEST} or newer, got {message.version}")
        if os.fstat(fds[0]).st_size != channel.RING_SIZE:
            raise ProtocolError(f"view channel: expected a ring of {channel.RING_SIZE} bytes")
        try:
            self._ring = memoryview(mmap.mmap(fds[0], channel.RING_SIZE, prot=mmap.PROT_READ))
        except OSError as error:
            raise ProtocolError(f"view channel: the ring cannot be mapped: {error}") from None
        self._outbox.connect(agent)
        version = min(message.version, channel.VERSION)
        self._view.agent_came(version)
        self._outbox.put(Hello(version).encode())

    def _add(self, message: channel.Add, fds: list[int]) -> None:
        if len(fds) != 2:
            raise ProtocolError(f"view channel: expected 2 descriptors with layer {message.node}, got {len(fds)}")
        image_fd, present_fd = fds
        fds.clear()  # the layer owns them now
        number = 0
        try:
            self._view.add(Layer(message.node, message.size, message.name, image_fd, present_fd))
        except (CorruptError, NewerFormatError, OSError) as error:
            log.error("layer %s is not shown: %s", message.name.decode("ascii", "replace"), error)
            number = errno.EINVAL
        self._outbox.put(Added(message.node, number).encode())

    def _dispatch(self, message: channel.Message) -> None:
        match message:
            case channel.Ready(node, start, end, slot):
                assert self._ring is not None
                at = slot * channel.RING_BUFFER_SIZE
                self._view.ready(node, start, self._ring[at : at + end - start])
                self._outbox.put(Ack(slot).encode())
            case channel.Held(node, start, end, slot):
                assert self._ring is not None
                at = slot * channel.RING_BUFFER_SIZE
                self._view.held(node, start, self._ring[at : at + end - start])
                self._outbox.put(Ack(slot).encode())
            case channel.Written(node, start, end):
                self._view.written(node, start, end)
            case channel.Fail(node, start, end, number):
                self._view.fail(node, start, end, number)
            case channel.Remove(node):
                self._view.remove(node)
                self._outbox.put(Removed(node).encode())
            case channel.Synced():
                self._view.synced()
                self._outbox.ring()  # what was touched meanwhile can go out
                self._on_synced()
            case _:
                raise ProtocolError(f"view channel: an agent does not send {message}")
