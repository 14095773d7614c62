"""Push an image of ours to a plain-HTTP registry (OCI distribution: monolithic blob upload, manifest by tag)."""

from __future__ import annotations

import http.client
import urllib.parse
from collections.abc import Mapping
from typing import IO

from imgdist.demo.image import MANIFEST_TYPE, Blob, Image
from imgdist.errors import ProtocolError


def push(image: Image, address: str, repository: str, tag: str, *, mark: str = "") -> tuple[str, str]:
    """Upload what the registry at `address` lacks; the reference "address/repository:tag" and the manifest's digest.

    `mark`: see `Image.manifest_bytes`. Raises ProtocolError naming the step and the status.
    """
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        for blob in (*image.layers, image.config):
            _push_blob(connection, image, repository, blob)
        manifest = image.manifest_bytes(mark)
        path = f"/v2/{repository}/manifests/{tag}"
        headers = _ask(connection, "PUT", path, {201}, manifest, {"Content-Type": MANIFEST_TYPE})
        return f"{address}/{repository}:{tag}", headers["Docker-Content-Digest"]
    finally:
        connection.close()


def _push_blob(connection: http.client.HTTPConnection, image: Image, repository: str, blob: Blob) -> None:
    connection.request("HEAD", f"/v2/{repository}/blobs/{blob.digest}")
    response = connection.getresponse()
    response.read()
    if response.status == 200:
        return
    started = _ask(connection, "POST", f"/v2/{repository}/blobs/uploads/", {202})
    location = urllib.parse.urlsplit(started["Location"])
    query = [*urllib.parse.parse_qsl(location.query), ("digest", blob.digest)]
    with image.path(blob).open("rb") as body:
        path = f"{location.path}?{urllib.parse.urlencode(query)}"
        headers = {"Content-Length": str(blob.size_bytes), "Content-Type": "application/octet-stream"}
        _ask(connection, "PUT", path, {201}, body, headers)


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    expected: set[int],
    body: bytes | IO[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Mapping[str, str]:
    # Read pieces of 64 KiB make http.client send 64 KiB at a time; loopback does not mind.
    connection.request(method, path, body=body, headers=dict(headers or {}))
    response = connection.getresponse()
    answer = response.read()
    if response.status not in expected:
        raise ProtocolError(f"registry: {method} {path}: expected {expected}, seen {response.status}: {answer[:300]!r}")
    return dict(response.headers.items())
