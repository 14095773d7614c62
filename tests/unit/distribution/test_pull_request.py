"""What a path and `ns` ask for, and what is refused how."""

from __future__ import annotations

import pytest

from imgdist.distribution.refusal import RefusedError, refusal, refused
from imgdist.distribution.request import Kind, link, parse
from imgdist.errors import CorruptError, DeclinedError, DeniedError, NotFoundError, TemporaryError
from imgdist.oci.reference import Reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("path", "namespace", "host", "repository"),
    [
        ("/v2/a/b/manifests/1", "reg.example:5000", "reg.example:5000", "a/b"),
        ("/v2/reg.example/b/manifests/1", "quay.io", "quay.io", "reg.example/b"),
        ("/v2/library/busybox/manifests/1", "", "docker.io", "library/busybox"),
        ("/v2/busybox/manifests/1", "", "docker.io", "library/busybox"),
        ("/v2/a/b/manifests/1", "registry-1.docker.io", "docker.io", "a/b"),
        ("/v2/quay.io/a/b/manifests/1", "", "quay.io", "a/b"),
        ("/v2/docker.io/busybox/manifests/1", "", "docker.io", "library/busybox"),
        ("/v2/localhost_5000/a/manifests/1", "", "localhost:5000", "a"),
        ("/v2/127.0.0.1_5000/a/b/manifests/1", "", "127.0.0.1:5000", "a/b"),
        ("/v2/manifests/blobs/manifests/1", "r.example", "r.example", "manifests/blobs"),
    ],
)
def test_whose_repository_is_meant(path: str, namespace: str, host: str, repository: str) -> None:
    asked = parse(path, namespace)
    assert (asked.kind, asked.reference) == (Kind.MANIFEST, Reference(host, repository, tag="1"))


def test_each_endpoint() -> None:
    assert parse("/v2/").kind is parse("/v2").kind is Kind.BASE
    assert parse(f"/v2/a/b/manifests/{DIGEST}").reference == Reference("docker.io", "a/b", digest=DIGEST)
    assert parse(f"/v2/a/b/blobs/{DIGEST}").kind is Kind.BLOB
    assert parse(f"/v2/a/b/referrers/{DIGEST}").kind is Kind.REFERRERS
    assert parse("/v2/a/b/tags/list").reference == Reference("docker.io", "a/b")


@pytest.mark.parametrize(
    ("path", "namespace", "status", "code"),
    [
        ("/v2/a/b/manifests/sha256:totallywrong", "", 400, "DIGEST_INVALID"),
        ("/v2/a/b/blobs/sha256:totallywrong", "", 400, "DIGEST_INVALID"),
        ("/v2/a/b/blobs/latest", "", 400, "DIGEST_INVALID"),
        ("/v2/a/b/referrers/latest", "", 400, "DIGEST_INVALID"),
        ("/v2/a/b/manifests/.INVALID_MANIFEST_NAME", "", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/B/manifests/1", "", 400, "NAME_INVALID"),
        (f"/v2/a/{'b' * 300}/manifests/1", "", 400, "NAME_INVALID"),
        ("/v2/a/b/manifests/1", "not a host", 400, "NAME_INVALID"),
        ("/v2/a/b/manifests/1", "user@host", 400, "NAME_INVALID"),
        ("/v2/_catalog", "", 404, "UNSUPPORTED"),
        ("/v2/a/b/tags/other", "", 404, "UNSUPPORTED"),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_specifications_words(
    path: str, namespace: str, status: int, code: str
) -> None:
    with pytest.raises(RefusedError) as told:
        parse(path, namespace)
    assert (told.value.status, told.value.code) == (status, code)


def test_errors_send_clients_where_they_get_on() -> None:
    unknown = "BLOB_UNKNOWN"
    assert refusal(NotFoundError("x"), unknown).status == 404
    assert refusal(DeclinedError("x"), unknown).code == unknown
    assert refusal(DeniedError("x"), unknown).status == 403
    assert refusal(CorruptError("x"), unknown).status == 503
    later = refusal(TemporaryError("x", 2.5), unknown)
    assert (later.status, later.headers) == (503, (("Retry-After", "3"),))
    challenged = refusal(DeniedError("x", ('Bearer realm="r"', "Basic")), unknown)
    assert (challenged.status, challenged.code) == (401, "UNAUTHORIZED")
    assert challenged.headers == (("WWW-Authenticate", 'Bearer realm="r"'), ("WWW-Authenticate", "Basic"))


def test_a_refusal_is_read_back_as_it_was_told() -> None:
    first = RefusedError(404, "BLOB_UNKNOWN", "no such blob")
    again = refused(404, first.body, [], "X")
    assert (again.status, again.code, str(again)) == (404, "BLOB_UNKNOWN", "no such blob")
    assert refused(404, b"", [], "BLOB_UNKNOWN").code == "BLOB_UNKNOWN"
    assert refused(500, b"<html>\xff", [], "X").code == "UNKNOWN"


def test_a_next_page_leads_back_here() -> None:
    asked = parse("/v2/a/b/tags/list", "reg.example")
    told = '<https://reg.example/v2/a/b/tags/list?last=x%2Fy&n=2>; rel="next"'
    assert link(told, asked) == '</v2/a/b/tags/list?last=x%2Fy&n=2&ns=reg.example>; rel="next"'
    asked = parse("/v2/quay.io/b/tags/list")
    assert link('</v2/b/tags/list?n=2&last=z>; rel="next"', asked) == '</v2/quay.io/b/tags/list?n=2&last=z>; rel="next"'
    assert link("", asked) is None
