"""Image references: `[host[:port]/]repository[:tag][@digest]`, with docker.io's defaults.

Grammar: github.com/distribution/reference, and the OCI distribution specification ("Pulling manifests").
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from imgdist.errors import UsageError

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
REPOSITORY_MAX = 255

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[([0-9a-fA-F:.]+)\])(?::([0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. `host` keeps its port; at least one of `tag` and `digest` is set; the digest rules."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Host and repository, as in "docker.io/library/busybox"."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def is_digest(text: str) -> bool:
    """True for a well-formed sha256 or sha512 digest."""
    return _DIGEST.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    """True for a well-formed sha256 digest: the only kind that layers, diff IDs and chain IDs have here."""
    return is_digest(text) and text.startswith("sha256:")


def is_tag(text: str) -> bool:
    """True for a well-formed tag."""
    return _TAG.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """True for "host" or "host:port"; whether anybody is there is another question."""
    match = _HOST.fullmatch(text)
    if match is None or int(match[2] or 0) > 65535:
        return False
    try:
        return match[1] is None or bool(ipaddress.IPv6Address(match[1]))
    except ValueError:
        return False


def is_repository(text: str) -> bool:
    """True for a well-formed repository name."""
    return _REPOSITORY.fullmatch(text) is not None and len(text) <= REPOSITORY_MAX


def parse(text: str) -> Reference:
    """Read a reference as Docker and containerd do. Raises UsageError naming the text and what is wrong with it."""
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise UsageError(f"image reference {text!r}: {digest!r} is no digest; expected sha256: and 64 hex digits")
    host, rest = _split_host(rest)
    repository, colon, tag = rest.partition(":")
    if colon and not is_tag(tag):
        raise UsageError(f"image reference {text!r}: {tag!r} is no tag; expected letters, digits, '_', '.', '-'")
    if host == DEFAULT_HOST and repository and "/" not in repository:
        repository = f"library/{repository}"
    if not is_host(host):
        raise UsageError(f"image reference {text!r}: {host!r} is no registry host; expected host or host:port")
    if not is_repository(repository):
        raise UsageError(
            f"image reference {text!r}: {repository!r} is no repository; "
            f"expected lower-case path components, at most {REPOSITORY_MAX} characters"
        )
    return Reference(host, repository, tag or (None if digest else DEFAULT_TAG), digest or None)


def _split_host(rest: str) -> tuple[str, str]:
    """The registry host and what follows it: the first component is a host if it could not be a path component."""
    first, slash, after = rest.partition("/")
    if slash and (first == "localhost" or any(c in ".:" for c in first) or first != first.lower()):
        host = DEFAULT_HOST if first == "index.docker.io" else first
        return host, after
    return DEFAULT_HOST, rest
