"""The Range header, and Accept: what of a blob is sent, which manifest a client takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.distribution.accept import EVERYTHING, accepts
from imgdist.distribution.byterange import UnsatisfiableError, chosen
from imgdist.oci.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 10)),
        ("bytes=5-7", (5, 8)),
        ("bytes=5-999", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes = 1 - 2", (1, 3)),
        ("bytes=0-1,3-4", None),
        ("bytes=7-5", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
    ],
)
def test_what_is_sent(header: str | None, span: tuple[int, int] | None) -> None:
    assert chosen(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_beyond_the_end(header: str) -> None:
    with pytest.raises(UnsatisfiableError):
        chosen(header, 10)


@given(st.text(max_size=30), st.integers(0, 1 << 40))
def test_any_header_is_a_span_of_the_blob_or_ignored(header: str, size: int) -> None:
    try:
        span = chosen("bytes=" + header, size)
    except UnsatisfiableError:
        return
    assert span is None or 0 <= span[0] < span[1] <= size


def test_what_a_client_takes() -> None:
    assert accepts([], OCI_INDEX)
    assert accepts([EVERYTHING], "application/vnd.example.any")
    assert accepts([f"{OCI_MANIFEST}, */*;q=0.1"], OCI_INDEX)
    assert accepts([OCI_MANIFEST, OCI_INDEX.upper()], OCI_INDEX)
    assert accepts(["application/*"], OCI_INDEX)
    assert not accepts([OCI_MANIFEST], DOCKER_LIST)
    assert not accepts([f"{OCI_INDEX};q=0"], OCI_INDEX)
