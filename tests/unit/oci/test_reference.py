"""References: Docker's defaults, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import UsageError
from imgdist.oci.reference import Reference, parse

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("a/b", "docker.io/a/b:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/b:2", "docker.io/a/b:2"),
        ("localhost/a", "localhost/a:latest"),
        ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("reg.example/a--b/c__d.e", "reg.example/a--b/c__d.e:latest"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
        (f"reg.example:5000/a:1@{DIGEST}", f"reg.example:5000/a:1@{DIGEST}"),
        ("REG/a", "REG/a:latest"),
    ],
)
def test_parse(text: str, full: str) -> None:
    reference = parse(text)
    assert str(reference) == full
    assert parse(full) == reference


def test_parts() -> None:
    assert parse(f"h:5/r/s:t@{DIGEST}") == Reference("h:5", "r/s", "t", DIGEST)
    assert parse("x").name == "docker.io/library/x"
    assert parse(f"x@{DIGEST}").tag is None


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a:", "a:-x", "A", "a/B", "a//b", "/a", "a/", "a@sha256:12", "a@md5:" + "0" * 32, "h.x/", "a b", "h:x/a",
     "reg.example/" + "a" * 256, "a:" + "t" * 129, "a\n", "../a", "h.x/a/../b", "h.x:65536/a",
     "[1::2::3]/a"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(UsageError, match="image reference"):
        parse(text)


@given(st.text(max_size=80))
def test_anything_is_parsed_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except UsageError:
        return
    assert parse(str(reference)) == reference
