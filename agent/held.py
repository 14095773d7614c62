"""What the holder holds: listening sockets, the FUSE session of the view, shared memory. The standard library alone.

All of it can come from an earlier holder: from the one that this process was before (agent/succession.py), or by way of
the service manager's store (agent/systemd.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import stat
from collections.abc import Iterable

from agent import systemd

_SOCKET_PATH_MAX = 107  # bytes; sockaddr_un in linux/un.h has 108 with the final zero
_BACKLOG = 1024
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024
_MNT_DETACH = 2
_KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}
_ONLY = {
    "fuse": "view",
    "slots": "view",
    "socket:view": "view",
    "socket:supernode": "supernode",
    "socket:chunks": "supernode",
    "socket:holder": "",
}
"""Who alone gets a descriptor; the holder keeps its own."""

_libc = ctypes.CDLL(None, use_errno=True)


class HoldError(Exception):
    """Something cannot be held; the message says what, what was expected and what to do."""


class Held:
    """All of it, made or taken over at once. Raises HoldError, having let go of what it had made."""

    def __init__(
        self,
        run: str,
        root: str,
        sockets: list[dict[str, str]],
        with_fuse: bool,
        found: Iterable[tuple[str, int]] = (),
    ) -> None:
        """`sockets`: name, type and path or tcp of each. The view is mounted at `run`/view. `found`: descriptors of an
        earlier holder by name; what fits is used, the rest kept until `settle`."""
        self._mount_point = os.path.join(run, "view")
        self._with_fuse = with_fuse
        self._paths: list[str] = []
        self._fds: dict[str, int] = {}
        self._spare = list(found)
        self._made: list[int] = []
        try:
            _check_writable(run)
            _check_writable(root)
            for item in sockets:
                self._fds[f"socket:{item['name']}"] = self._adopted(item) or self._listen(item)
            if self._with_fuse and not self._adopt_session():
                self._open_session()
        except HoldError:
            self._undo()
            raise

    def descriptors(self, role: str) -> tuple[list[str], list[int]]:
        """(names, descriptors) for a child."""
        names = [name for name in self._fds if _ONLY.get(name, role) == role]
        return names, [self._fds[name] for name in names]

    def get(self, name: str) -> int | None:
        """One of them."""
        return self._fds.get(name)

    def all(self) -> list[tuple[str, int]]:
        """Everything by name, what was found and did not fit included."""
        return [*self._fds.items(), *self._spare]

    def settle(self) -> None:
        """Nobody goes back to the earlier holder: let go of what was found and not used, which nobody else may keep
        listening; what is left is given to the service manager to keep."""
        for name, fd in self._spare:
            path = _path(fd)
            os.close(fd)
            systemd.discard(name)
            if path and path not in self._paths:
                _remove_socket(path)
        self._spare = []
        self._made = []
        for name, fd in self._fds.items():
            systemd.store(name, fd)

    def renew_session(self) -> None:
        """A new mount and fresh slots in place of a session that has ended. Raises HoldError."""
        self._close_session()
        self._open_session()
        for name in ("fuse", "slots"):
            systemd.store(name, self._fds[name])

    def release(self) -> None:
        """Close everything. What nobody keeps ends: the view's mount is detached, the sockets' files are removed. Under
        a service manager they stay: after a restart they are found again, and no reader has noticed it."""
        kept = systemd.keeps_descriptors()
        if not kept:
            self._close_session()
        for _, fd in self.all():
            os.close(fd)
        self._fds.clear()
        self._spare = []
        if not kept:
            for path in self._paths:
                _remove_socket(path)

    def _undo(self) -> None:
        """Let go of what was made, and of nothing else."""
        if self._fds.get("fuse") in self._made:
            self._close_session()
        for name, fd in list(self._fds.items()):
            if fd in self._made:
                path = _path(fd) if name.startswith("socket:") else None
                os.close(fd)
                if path:
                    _remove_socket(path)

    def _adopted(self, item: dict[str, str]) -> int | None:
        """The found socket that listens where this one is to."""
        for name, fd in self._spare:
            if name == f"socket:{item['name']}" and _listens_at(fd, item):
                self._spare.remove((name, fd))
                if "path" in item:
                    self._paths.append(item["path"])
                return fd
        return None

    def _adopt_session(self) -> bool:
        """Take over a session whose mount is still there. One that has ended all the same is found by the view."""
        found = {name: fd for name, fd in self._spare if name in ("fuse", "slots")}
        if len(found) < 2 or _real_path(self._mount_point) not in _mount_points():
            return False
        self._spare = [(name, fd) for name, fd in self._spare if name not in found]
        self._fds |= found
        return True

    def _listen(self, item: dict[str, str]) -> int:
        if "tcp" in item:
            return self._keep(_listen_tcp(item["tcp"]))
        path = item["path"]
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise HoldError(
                f"{path}: expected a socket path of at most {_SOCKET_PATH_MAX} bytes, got {len(os.fsencode(path))}; "
                "choose a shorter one"
            )
        listener = socket.socket(socket.AF_UNIX, _KINDS[item["type"]])
        try:
            if _answers(path, _KINDS[item["type"]]):
                raise HoldError(f"{path}: another process listens there; stop it or choose another path")
            _remove_socket(path)
            before = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            self._paths.append(path)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise HoldError(f"{path}: cannot listen: {error.strerror}") from None
        except HoldError:
            listener.close()
            raise
        return self._keep(listener.detach())

    def _keep(self, fd: int) -> int:
        self._made.append(fd)
        return fd

    def _open_session(self) -> None:
        """Mount the view's file system, whose requests wait until a view reads them."""
        _detach(self._mount_point)  # first: anything that looks at a dead mount fails (ENOTCONN), makedirs included
        try:
            os.makedirs(self._mount_point, mode=0o700, exist_ok=True)
            fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HoldError(f"{error.filename}: {error.strerror}; the view needs FUSE") from None
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
        target = os.fsencode(self._mount_point)
        if _libc.mount(b"imgdist", target, b"fuse.imgdist", ctypes.c_ulong(flags), options) != 0:
            number = ctypes.get_errno()
            os.close(fuse)
            raise HoldError(f"{self._mount_point}: cannot mount the view: {os.strerror(number)}")
        self._fds["fuse"] = self._keep(fuse)
        self._fds["slots"] = self._keep(os.memfd_create("imgdist-slots"))  # the view gives it its size

    def _close_session(self) -> None:
        """Close the session first: with nobody left to answer, the kernel fails what waits and nothing can hang."""
        for name in ("fuse", "slots"):
            if (fd := self._fds.pop(name, None)) is not None:
                os.close(fd)
        if self._with_fuse:
            _detach(self._mount_point)


def _listen_tcp(address: str) -> int:
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(target)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            reason = "another process uses the address; stop it or choose another address"
        raise HoldError(f"cannot listen on {address}: {reason}") from None
    return listener.detach()


def _listens_at(fd: int, item: dict[str, str]) -> bool:
    """Whether `fd` listens where `item` says, and can be reached there."""
    if (path := _path(fd)) is not None:
        return path == item.get("path") and os.path.exists(path)
    if "tcp" not in item:
        return False
    host, _, port = item["tcp"].rpartition(":")
    with socket.socket(fileno=os.dup(fd)) as listener:
        bound = listener.getsockname()
        family = listener.family
    try:
        wanted = socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_STREAM)[0][4]
    except (OSError, ValueError):
        return False
    return bound[0] == wanted[0] and wanted[1] in (0, bound[1])


def _path(fd: int) -> str | None:
    """Where a unix socket is bound; None for anything else."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    with socket.socket(fileno=os.dup(fd)) as bound:
        return bound.getsockname() or None if bound.family == socket.AF_UNIX else None


def _answers(path: str, kind: int) -> bool:
    """Whether somebody listens at `path`: what remains of a holder that was killed does not."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _remove_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        return


def _detach(mount_point: str) -> None:
    """Lazily unmount whatever is mounted there. Asks the mount table: looking at a hung mount itself would hang."""
    here = _real_path(mount_point)
    while here in _mount_points():
        if _libc.umount2(os.fsencode(mount_point), _MNT_DETACH) != 0:
            raise HoldError(f"{mount_point}: cannot unmount what is there: {os.strerror(ctypes.get_errno())}")


def _real_path(mount_point: str) -> str:
    """As the mount table has it. The mount point itself is not looked at."""
    parent, name = os.path.split(mount_point)
    return os.path.join(os.path.realpath(parent), name)


def _mount_points() -> set[str]:
    """Mount points of /proc/self/mountinfo (proc(5)), in which space, tab, newline and backslash are octal escapes."""
    with open("/proc/self/mountinfo", "rb") as table:
        escaped = [line.split(b" ")[4] for line in table]
    return {os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), path)) for path in escaped}


def _check_writable(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        probe = os.path.join(directory, f".writable-{os.getpid()}")
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise HoldError(f"{directory}: expected a writable directory: {error.strerror}") from None
