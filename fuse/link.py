"""The agent's side of the view channel: names layers, hears of misses, says when bytes are there.

The link reconnects by itself when the view was restarted or replaced, names all layers again, and says Synced; then
the view asks again for whatever is still parked. So nothing of a miss has to be remembered here, and a notice that
could not be sent is not lost: `ready`, `written` and `fail` without a view do nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from fuse import channel
from fuse.ring import Ring
from imgdist.errors import CorruptError, ProtocolError, TemporaryError

log = logging.getLogger("imgdist.view")

_SEND_TIMEOUT_S = 10  # a view that takes no message for so long is stopped or stuck: it is dropped, not waited for
_RETRY_LEAST_S, _RETRY_MOST_S = 0.02, 1.0
_RECEIVERS = 2
"""Threads that receive: all but one may carry out a miss by themselves, which spares it a hand-over [measured: three
are no faster, though one that has answered is still writing when every fourth miss of a chain comes]."""


@dataclass(slots=True)
class _Shown:
    message: channel.Add
    fds: tuple[int, int]
    answered: bool = False
    """The view of this connection has taken or refused it."""
    errno: int = 0
    renewed: bool = False
    """It had been named before."""


def _ignore(*_: object) -> None:
    return


class ViewLink:
    """The one connection of this agent to the view. Thread-safe. Callbacks run on the link's own threads: they must
    neither block, except within `linger`, nor call `add`, `remove` or `close`.

    A read that missed is answered by `ready` or `written`, or ended by `fail`. Bytes announced by `ready` are written
    afterwards, marked in the present map, and then announced by `written`. A `on_miss` for bytes that have become
    present meanwhile must be answered by `written` too; then ranges that nobody missed need no notice at all.
    """

    def __init__(
        self,
        path: str,
        on_miss: Callable[[int, int, int], None],
        on_touched: Callable[[list[tuple[int, int, int]]], None] = _ignore,
        on_failed: Callable[[str, int], None] = _ignore,
        on_lapsed: Callable[[int, int, int, float], None] = _ignore,
    ) -> None:
        """Link to the view that listens at `path`, from `start` on. Offsets and lengths in bytes.

        `on_miss(node, start, length)`; `on_touched([(node, first_block, blocks), ...])` in order of first touch;
        `on_failed(reason, reads)`: that many more reads got an I/O error for one of channel.FAILURES;
        `on_lapsed(node, start, length, waited_s)`: this one at its deadline.
        """
        self._path = path
        self._on_miss, self._on_touched = on_miss, on_touched
        self._on_failed, self._on_lapsed = on_failed, on_lapsed
        self._ring = Ring()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # something was answered, or the view is another
        self._layers: dict[int, _Shown] = {}
        self._removing: dict[int, threading.Event] = {}
        self._socket: socket.socket | None = None
        self._offer = self._version = channel.VERSION
        self._live = False
        self._closed = threading.Event()
        self._spare = threading.Semaphore(_RECEIVERS - 1)
        self._thread = threading.Thread(target=self._run, name="view-link", daemon=True)
        self._others: list[threading.Thread] = []

    def start(self) -> None:
        """Connect, and stay connected."""
        self._thread.start()

    def close(self) -> None:
        """Leave the view: it keeps its layers and parks what misses until the next agent comes. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the link's thread may just have closed it
                    self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join()
        for thread in self._others:
            thread.join()
        for shown in self._layers.values():
            _close(shown)
        self._layers.clear()
        self._ring.close()

    def add(self, node: int, size: int, name: str, image_fd: int, present_fd: int, timeout_s: float = 30.0) -> None:
        """Show layer `node` (>= 2) of `size` bytes as file `name`; returns once the view can open it.

        The descriptors (image, readable; present map, writable) are duplicated. Raises CorruptError if the view refuses
        them, TemporaryError if no view has answered in `timeout_s`. The layer is forgotten then, unless it was named
        before: what is mounted must come back with the view, however late.
        """
        self.announce(node, size, name, image_fd, present_fd)
        self.confirm(node, timeout_s)

    def announce(self, node: int, size: int, name: str, image_fd: int, present_fd: int) -> None:
        """The first half of `add`: nothing is waited for. Alone for layers that an earlier agent showed, named before
        `start`: the first Synced then speaks for them too, and reads that waited meanwhile do not end for want of their
        layer."""
        shown = _Shown(channel.Add(node, size, name.encode("ascii")), (os.dup(image_fd), os.dup(present_fd)))
        with self._lock:
            old = self._layers.get(node)
            shown.renewed = old is not None
            self._layers[node] = shown
            if self._live:
                self._send(shown.message, shown.fds)
        if old is not None:
            _close(old)

    def confirm(self, node: int, timeout_s: float = 30.0) -> None:
        """The second half of `add`, for a layer that was announced."""
        assert not self._receives(), "the answer comes on this thread"
        with self._changed:
            shown = self._layers[node]
            answered = self._changed.wait_for(lambda: shown.answered, timeout_s)
        if answered and not shown.errno:
            return
        if not shown.renewed:
            self.remove(node)
        name = shown.message.name.decode()
        if answered:
            raise CorruptError(f"layer {name}: the view refuses its files ({os.strerror(shown.errno)})")
        raise TemporaryError(f"layer {name}: no view at {self._path} has taken it in {timeout_s:.0f} s")

    def wait_live(self, timeout_s: float = 30.0) -> None:
        """Return once a view is there that has answered for every layer named here (one that it refused is logged).

        Raises TemporaryError after `timeout_s`; nothing is forgotten then, the link goes on trying.
        """
        assert not self._receives(), "the answers come on this thread"
        with self._changed:
            if self._changed.wait_for(self._all_answered, timeout_s):
                return
            waiting = sum(not shown.answered for shown in self._layers.values())
        raise TemporaryError(
            f"no view at {self._path} has taken all layers in {timeout_s:.0f} s: "
            f"{waiting} of {len(self._layers)} wait, {'connected' if self._live else 'not connected'}"
        )

    def _all_answered(self) -> bool:
        return self._live and all(shown.answered for shown in self._layers.values())

    def remove(self, node: int, timeout_s: float = 5.0) -> None:
        """Forget layer `node`; its waiting reads end with EIO. Returns when the view has closed its files."""
        assert not self._receives(), "the answer comes on this thread"
        gone = threading.Event()
        with self._lock:
            shown = self._layers.pop(node, None)
            if shown is None:
                return
            _close(shown)
            if not self._live:
                return
            self._removing[node] = gone
            self._send(channel.Remove(node))
        gone.wait(timeout_s)

    def linger(self) -> bool:
        """In a callback: whether its thread may stay away until `back`, as another one receives meanwhile."""
        return self._spare.acquire(blocking=False)

    def back(self) -> None:
        """The thread that was allowed to `linger` receives again."""
        self._spare.release()

    def acquire_ring(self, *, keep: bool = False) -> int | None:
        """A free ring buffer, or None: then write and say `written`. `ready` ends its use, unless it is to `keep` what
        was put into it, to be read by its user, until `release_ring`."""
        with self._lock:
            return self._ring.acquire(keep=keep) if self._live else None

    def release_ring(self, slot: int) -> None:
        """A buffer that was kept is not read any more."""
        with self._lock:
            self._ring.release(slot)

    def ring(self, slot: int) -> memoryview:
        """The 256 KiB of ring buffer `slot`."""
        return self._ring.buffer(slot)

    def ready(self, node: int, start: int, end: int, slot: int) -> None:
        """Verified bytes [start, end) of the image stand in buffer `slot`, from its beginning; gives it away."""
        self._give(channel.Ready(node, start, end, slot))

    def held(self, node: int, start: int, end: int, slot: int) -> None:
        """As `ready`, of bytes that the disk did not take. A view that gathers none takes them for ready: it answers
        the reads that need no others."""
        self._give(channel.Held(node, start, end, slot))

    def _give(self, message: channel.Ready | channel.Held) -> None:
        with self._lock:
            if not self._live:
                self._ring.give_back(message.slot)
                return
            if self._version == channel.OLDEST:
                message = channel.Ready(*message)
            self._ring.lend(message.slot)
            self._send(message)

    def written(self, node: int, start: int, end: int) -> None:
        """Bytes [start, end) are in the image and marked in the present map."""
        self._notify(channel.Written(node, start, end))

    def fail(self, node: int, start: int, end: int, number: int) -> None:
        """Reads that wait for any byte of [start, end) end with errno `number`."""
        self._notify(channel.Fail(node, start, end, number))

    def _notify(self, message: channel.Message) -> None:
        with self._lock:
            if self._live:
                self._send(message)

    def _send(self, message: channel.Message, fds: tuple[int, ...] = ()) -> None:
        """Send under the lock. A view that cannot take it is left; the link's thread connects to the next."""
        assert self._socket is not None
        try:
            if fds:
                socket.send_fds(self._socket, [message.encode()], fds, socket.MSG_NOSIGNAL)
            else:
                self._socket.send(message.encode(), socket.MSG_NOSIGNAL)
        except OSError as error:
            log.warning("view at %s takes no messages: %s", self._path, error)
            self._live = False
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it hung up itself

    def _run(self) -> None:
        retry_s = _RETRY_LEAST_S
        while not self._closed.is_set():
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                    self._connect(connection)
                    retry_s = _RETRY_LEAST_S
                    self._receive(connection, connection)
            except (OSError, ProtocolError) as error:
                log.info("no view at %s: %s", self._path, error)
            finally:
                self._disconnected()
            self._closed.wait(retry_s)
            retry_s = min(2 * retry_s, _RETRY_MOST_S)

    def _receive(self, connection: socket.socket, of: socket.socket) -> None:
        """Handle what comes, beside others that receive `of` the same connection, until it ends; it ends for all."""
        try:
            while data := connection.recv(channel.MESSAGE_MAX):
                self._dispatch(channel.decode(data), of)
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _begin_receivers(self, connection: socket.socket) -> None:
        self._others = [thread for thread in self._others if thread.is_alive()]
        for number in range(1, _RECEIVERS):
            own = connection.dup()  # that no descriptor is closed while another thread waits for it
            name = f"view-link-{number}"
            self._others.append(threading.Thread(target=self._assist, args=(own, connection), name=name, daemon=True))
            self._others[-1].start()

    def _assist(self, own: socket.socket, of: socket.socket) -> None:
        try:
            with own:
                self._receive(own, of)
        except (OSError, ProtocolError) as error:
            log.info("the view at %s is left: %s", self._path, error)

    def _receives(self) -> bool:
        return threading.current_thread() in (self._thread, *self._others)

    def _connect(self, connection: socket.socket) -> None:
        timeout = struct.pack("@ll", _SEND_TIMEOUT_S, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        connection.connect(self._path)
        with self._lock:
            if self._closed.is_set():
                raise ConnectionAbortedError("closed")
            self._socket = connection
        offer = self._offer
        # The next one, if this view hangs up: the oldest does so on a version that it does not know.
        self._offer = channel.OLDEST if offer == channel.VERSION else channel.VERSION
        socket.send_fds(connection, [channel.Hello(offer).encode()], [self._ring.fd], socket.MSG_NOSIGNAL)
        answer = channel.decode(connection.recv(channel.MESSAGE_MAX))
        if not isinstance(answer, channel.Hello) or not channel.OLDEST <= answer.version <= offer:
            raise ProtocolError(f"view channel: expected a hello of version {offer} at most, got {answer}")
        self._offer = channel.VERSION
        self._begin_receivers(connection)
        with self._lock:  # an `add` or `remove` of another thread comes wholly before this, or after
            self._live, self._version = True, answer.version
            for shown in self._layers.values():
                self._send(shown.message, shown.fds)
            self._send(channel.Synced())
            self._changed.notify_all()

    def _disconnected(self) -> None:
        with self._lock:
            self._socket = None
            self._live = False
            self._ring.all_returned()  # what it did not answer is asked again
            for gone in self._removing.values():
                gone.set()
            self._removing.clear()
            for shown in self._layers.values():
                shown.answered = False  # by this view; the next one is told anew

    def _dispatch(self, message: channel.Message, of: socket.socket) -> None:
        """`of`: the connection by which it came. An answer to what was sent by an earlier one means nothing."""
        match message:
            case channel.Miss(node, start, length):
                self._call(self._on_miss, node, start, length)
            case channel.Ack(slot):
                with self._lock:
                    if self._socket is of:
                        self._ring.returned(slot)
            case channel.Touched(entries):
                self._call(self._on_touched, list(entries))
            case channel.Failed(reason, reads):
                self._call(self._on_failed, reason, reads)
            case channel.Lapsed(node, start, length, waited_ms):
                self._call(self._on_lapsed, node, start, length, waited_ms / 1000)
            case channel.Added(node, number):
                self._added(node, number, of)
            case channel.Removed(node):
                with self._lock:
                    gone = self._removing.pop(node, None) if self._socket is of else None
                if gone is not None:
                    gone.set()
            case _:
                raise ProtocolError(f"view channel: a view does not send {message}")

    def _added(self, node: int, number: int, of: socket.socket) -> None:
        with self._changed:
            if (shown := self._layers.get(node)) is None or self._socket is not of:
                return
            shown.errno, shown.answered = number, True
            self._changed.notify_all()
        if number:
            log.error("layer %s: the view refuses its files (%s)", shown.message.name.decode(), os.strerror(number))

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:  # a fault in one layer's policy must not cut off all others
            log.exception("view link: %r%r failed", callback, arguments)


def _close(shown: _Shown) -> None:
    for fd in shown.fds:
        os.close(fd)
