"""The tracker's simulated agents: frames as RFC 6455 has them, and a small run of the whole benchmark."""

from __future__ import annotations

import argparse
import os

import pytest

from bench import tracker
from bench.tracker_agents import frame
from imgdist.errors import UnsupportedError


@pytest.mark.parametrize("size", [0, 1, 4, 125, 126, 127, 5000, 65535])
def test_frames_are_masked_binary_messages(size: int) -> None:
    payload = os.urandom(size)
    data = frame(payload)
    assert data[0] == 0x82  # final, binary
    assert data[1] & 0x80
    length, at = data[1] & 0x7F, 2
    if length == 126:
        length, at = int.from_bytes(data[2:4], "big"), 4
    assert length == size
    key, masked = data[at : at + 4], data[at + 4 :]
    assert bytes(byte ^ key[i % 4] for i, byte in enumerate(masked)) == payload
    assert frame(payload) != data  # a key of its own each time


def test_twenty_agents_join_and_report() -> None:
    args = argparse.Namespace(agents=20, join_s=0.5, fill_s=0.3, rest_s=0.3)
    rows = {row.what: row.value for row in tracker.run(args).rows}
    assert rows["members"] == rows["members probed back"] == 20
    assert rows["errors"] == 0
    assert 0 < rows["JOIN to PEERS, median"] <= rows["JOIN to PEERS, p99"] < 10_000
    assert rows["joining, messages in"] >= 20


def test_a_machine_that_allows_too_few_connections_is_told() -> None:
    args = argparse.Namespace(agents=1 << 40, join_s=0, fill_s=0, rest_s=0)
    with pytest.raises(UnsupportedError, match="ulimit -Hn"):
        tracker.run(args)
