"""What the holder holds: listening sockets, the FUSE session of the view, shared memory. The standard library alone."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import stat

_SOCKET_PATH_MAX = 107  # bytes; sockaddr_un in linux/un.h has 108 with the final zero
_BACKLOG = 1024
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024
_MNT_DETACH = 2
_KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}
_VIEW_ONLY = ("fuse", "slots", "socket:view")

_libc = ctypes.CDLL(None, use_errno=True)


class HoldError(Exception):
    """Something cannot be held; the message says what, what was expected and what to do."""


class Held:
    """All of it, made at once. Raises HoldError, having let go of what it had made."""

    def __init__(self, run: str, root: str, sockets: list[dict[str, str]], with_fuse: bool) -> None:
        """`sockets`: name, type and path or tcp of each. The view is mounted at `run`/view."""
        self._mount_point = os.path.join(run, "view")
        self._with_fuse = with_fuse
        self._paths: list[str] = []
        self._fds: dict[str, int] = {}
        try:
            _check_writable(run)
            _check_writable(root)
            for item in sockets:
                self._fds[f"socket:{item['name']}"] = self._listen(item)
            if self._with_fuse:
                self._open_session()
        except HoldError:
            self.release()
            raise

    def descriptors(self, role: str) -> tuple[list[str], list[int]]:
        """(names, descriptors) for a child: the session is the view's alone, all else is everybody's."""
        names = [name for name in self._fds if role == "view" or name not in _VIEW_ONLY]
        return names, [self._fds[name] for name in names]

    def renew_session(self) -> None:
        """A new mount and fresh slots in place of a session that has ended. Raises HoldError."""
        self._close_session()
        self._open_session()

    def release(self) -> None:
        """Close everything, detach the view's mount, remove the sockets' files."""
        self._close_session()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        for path in self._paths:
            _remove_socket(path)

    def _listen(self, item: dict[str, str]) -> int:
        if "tcp" in item:
            return _listen_tcp(item["tcp"])
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
        return listener.detach()

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
        self._fds["fuse"] = fuse
        self._fds["slots"] = os.memfd_create("imgdist-slots")  # the view gives it its size

    def _close_session(self) -> None:
        """Close the session first: with nobody left to answer, the kernel fails what waits and nothing can hang."""
        for name in ("fuse", "slots"):
            if (fd := self._fds.pop(name, None)) is not None:
                os.close(fd)
        if self._with_fuse:
            _detach(self._mount_point)


def notify_systemd(state: str) -> None:
    """sd_notify(3): tell the service manager, if one asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            return  # the manager is gone; nobody wants to know


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
    parent, name = os.path.split(mount_point)
    here = os.path.join(os.path.realpath(parent), name)
    while here in _mount_points():
        if _libc.umount2(os.fsencode(mount_point), _MNT_DETACH) != 0:
            raise HoldError(f"{mount_point}: cannot unmount what is there: {os.strerror(ctypes.get_errno())}")


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
