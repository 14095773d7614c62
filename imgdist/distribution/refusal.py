"""What a client is told instead of what it asked for: distribution-spec "Error Codes". Pure.

The status decides what clients do (tried with containerd 1.6 and 2.4, Docker 20.10, Podman 4.3): 404, 401, 403 and 503
send them to the registry itself at once; a 429 they repeat some times before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from imgdist.errors import DeclinedError, DeniedError, ImgdistError, NotFoundError, TemporaryError, UsageError

RETRY_AFTER_S = 1.0
"""Told with a 503 where the other side named no time."""


class RefusedError(ImgdistError):
    """An answer that is none of 200, 206: status, code of the specification, words, and further headers."""

    def __init__(self, status: int, code: str, message: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = tuple(headers)

    @property
    def body(self) -> bytes:
        """The document that carries it."""
        return msgspec.json.encode({"errors": [{"code": self.code, "message": str(self), "detail": None}]})


_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 416: "SIZE_INVALID", 429: "TOOMANYREQUESTS"}


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def refusal(error: ImgdistError, unknown: str) -> RefusedError:
    """What an error of ours is for a client; `unknown` is the code of what was not found."""
    words = str(error)
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, NotFoundError | DeclinedError):
        return RefusedError(404, unknown, words)
    if isinstance(error, DeniedError) and error.challenges:
        return RefusedError(401, "UNAUTHORIZED", words, [("WWW-Authenticate", one) for one in error.challenges])
    if isinstance(error, DeniedError):
        return RefusedError(403, "DENIED", words)
    if isinstance(error, UsageError):
        return RefusedError(400, "UNSUPPORTED", words)
    wait_s = RETRY_AFTER_S
    if isinstance(error, TemporaryError) and error.retry_after_s is not None:
        wait_s = error.retry_after_s
    # Whatever else went wrong between us and the registry, the client may well get it there.
    return RefusedError(503, "UNKNOWN", words, [("Retry-After", str(math.ceil(wait_s)))])


def refused(status: int, body: bytes, headers: Iterable[tuple[str, str]], unknown: str) -> RefusedError:
    """The same from an answer that was received; a body that is no error document (none comes with HEAD) is quoted."""
    try:
        told = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = []
    first = told[0] if told else _Error(message=body[:200].decode(errors="replace"))
    code = first.code or (unknown if status == 404 else _CODES.get(status, "UNKNOWN"))
    return RefusedError(status, code, first.message or f"answered by status {status}", headers)
