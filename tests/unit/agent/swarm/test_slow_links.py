"""How many requests a node has on their way, by what its link carries."""

import pytest

from agent.swarm.policy import Limits, Policy, SourceKind

PEERS, CHUNKS, CHUNK_BYTES = 16, 4096, 100_000


def _in_flight(peer_rate: float) -> int:
    """Fill requests that start at once, after every peer has served some at this rate, in bytes/s."""
    policy, limits = Policy(lambda: 0.5), Limits()
    for peer in range(PEERS):
        policy.join(peer, SourceKind.PEER)
        policy.opened(peer, "layer", (1 << CHUNKS) - 1)
    now, took = 0.0, CHUNK_BYTES / peer_rate
    for peer in [*range(PEERS)] * 4:
        policy.started(peer, 1, CHUNK_BYTES, False, now)
        policy.came(peer, CHUNK_BYTES, now + took)
        policy.ended(peer, CHUNK_BYTES, False, now + took)
        now += took
    lacks, started = (1 << CHUNKS) - 1, 0
    while (ask := policy.fill("layer", lacks, now)) is not None:
        policy.started(ask.source, ask.chunks, CHUNK_BYTES, False, now)
        started += 1
        assert started <= limits.bulk
    return started


@pytest.mark.parametrize(
    ("peer_rate", "expected"),
    [(0.5e6, Limits().outstanding_slow), (1.9e6, Limits().outstanding_slow), (2.1e6, Limits().outstanding)],
)
def test_fewer_requests_where_a_chunk_takes_long(peer_rate: float, expected: int) -> None:
    assert _in_flight(peer_rate) == expected
