"""The errors of imgdist, told apart by whose fault they are.

Each boundary translates once: errno (view), gRPC status (snapshotter), HTTP status (supernode, agent API),
exit code (CLI). A message names the thing, what was expected, what was seen and what to do.
"""

from __future__ import annotations


class ImgdistError(Exception):
    """Root of all errors that imgdist raises on purpose."""

    exit_code = 1


class UsageError(ImgdistError):
    """Our own caller asked for something that makes no sense (a malformed reference, a wrong flag)."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is wrong; the message names file, key, value and what is allowed."""


class UnsupportedError(ImgdistError):
    """This machine lacks something that the command needs (EROFS, FUSE, loop devices, root)."""

    exit_code = 3


class NotFoundError(ImgdistError):
    """The named thing does not exist at the place that was asked."""


class DeniedError(ImgdistError):
    """The other side refused us: no credentials, wrong credentials, no access.

    `challenges` are its WWW-Authenticate headers: how credentials would be shown, if it said so.
    """

    def __init__(self, message: str, challenges: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.challenges = challenges


class TemporaryError(ImgdistError):
    """May work later: connection refused, time-out, 429, 5xx.

    `retry_after_s` is the wait that the other side asked for, if it named one.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotYetError(TemporaryError):
    """What was asked for may be had in a moment, here or elsewhere: the other side is neither busy nor broken."""


class RedirectedError(TemporaryError):
    """The other side is busy; who is at `addresses` (host:port) has what was asked for, or is getting it; `from_here`:
    from that side."""

    def __init__(self, message: str, addresses: tuple[str, ...], *, from_here: bool = False) -> None:
        super().__init__(message)
        self.addresses = addresses
        self.from_here = from_here


class UnreachableError(TemporaryError):
    """Nobody is there, or not any more: refused, no route, connection cut. It may be somewhere else by now."""


class ProtocolError(ImgdistError):
    """The other side (kernel, registry, supernode, peer) sent bytes that its protocol does not allow."""


class NewerFormatError(ProtocolError):
    """Something was written by a newer release, in a version that this one does not read. It is left as it is."""


class CorruptError(ImgdistError):
    """Bytes do not match the digest or checksum that vouches for them."""


class DeclinedError(ImgdistError):
    """This layer or image is not taken over, and why; an ordinary pull is the right answer."""
