"""What a client asks a registry for: the pull and content-discovery endpoints, read from path and `ns`. Pure.

A mirror serves many registries. containerd names the one it means by `?ns=host`; Docker names none and means docker.io;
Podman, Buildah and Skopeo can be given a location with the host as its first component (`127.0.0.1:7650/quay.io`), in
which a port follows an underscore (`localhost_5000`), as a reference has no place for a second colon.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from imgdist.distribution.refusal import RefusedError
from imgdist.oci.reference import DEFAULT_HOST, Reference, is_digest, is_host, is_repository, is_tag

_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<what>[^/]*)")
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_PORT = re.compile(r"(.+)_([0-9]{1,5})")


class Kind(enum.Enum):
    """An endpoint (distribution-spec "Endpoints": end-1, 2, 3, 8, 12)."""

    BASE = "base"
    BLOB = "blob"
    MANIFEST = "manifest"
    TAGS = "tags"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `path` is what the client calls the repository, which a Link back to us has to use; `reference`
    is None for the base endpoint alone, and has neither tag nor digest for a list of tags."""

    kind: Kind
    reference: Reference | None = None
    path: str = ""
    namespace: str = ""

    @property
    def where(self) -> Reference:
        """The reference of anything but the base endpoint."""
        assert self.reference is not None
        return self.reference


def parse(path: str, namespace: str = "") -> Request:
    """Read a decoded path and the value of `ns`. Raises RefusedError: what the client is told instead."""
    if path in ("/v2", "/v2/"):
        return Request(Kind.BASE)
    found = _PATH.fullmatch(path)
    if found is None or (found["kind"] == "tags" and found["what"] != "list"):
        raise RefusedError(404, "UNSUPPORTED", f"{path}: only pulling, tag lists and referrers are served here")
    name, what = found["name"], found["what"]
    host, repository = upstream(name, namespace)
    if found["kind"] == "tags":
        return Request(Kind.TAGS, Reference(host, repository), name, namespace)
    if found["kind"] == "manifests" and ":" not in what:
        if not is_tag(what):
            raise RefusedError(404, "MANIFEST_UNKNOWN", f"{what[:140]!r} is no tag")
        return Request(Kind.MANIFEST, Reference(host, repository, tag=what), name, namespace)
    if not is_digest(what):
        raise RefusedError(400, "DIGEST_INVALID", f"{what[:140]!r}: expected sha256: and 64 hex digits")
    kind = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS}[found["kind"]]
    return Request(kind, Reference(host, repository, digest=what), name, namespace)


def upstream(name: str, namespace: str) -> tuple[str, str]:
    """The (registry, repository) that a client means by `name`. Raises RefusedError."""
    host, repository = (namespace.lower(), name) if namespace else _split(name)
    host = DEFAULT_HOST if host in _HUB else host
    if host == DEFAULT_HOST and "/" not in repository:
        repository = f"library/{repository}"
    if not is_host(host):
        raise RefusedError(400, "NAME_INVALID", f"ns={host[:140]!r} is no registry; expected host or host:port")
    if not is_repository(repository):
        raise RefusedError(
            400, "NAME_INVALID", f"{repository[:140]!r} is no repository; expected lower-case components"
        )
    return host, repository


def _split(name: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    host = _PORT.sub(r"\1:\2", first)
    if rest and (first in ("localhost",) or "." in host or ":" in host):
        return host, rest
    return DEFAULT_HOST, name


def link(upstream_link: str, request: Request) -> str | None:
    """A registry's Link to its next page of tags or referrers (RFC 8288), leading back here; None if it says nothing
    that can be followed."""
    found = re.match(r'\s*<([^>]*)>\s*;\s*rel="?next"?', upstream_link)
    if found is None:
        return None
    query = [(key, value) for key, value in parse_qsl(urlsplit(found[1]).query, True) if key != "ns"]
    if request.namespace:
        query.append(("ns", request.namespace))
    tail = "tags/list" if request.kind is Kind.TAGS else f"referrers/{request.where.digest}"
    return f'</v2/{request.path}/{tail}?{urlencode(query)}>; rel="next"'
