"""Reading many sockets together: the first after silence at once, what comes then in one round."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from mesh_rig import until

from agent.swarm.inbox import Inbox

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Ours, and the one that speaks."""
    made = [socket.socketpair() for _ in range(3)]
    for ours, _ in made:
        ours.setblocking(False)
    yield made
    for pair in made:
        for one in pair:
            one.close()


class Readers:
    """Takes note of what came, and after how many rounds."""

    def __init__(self, pairs: list[Pair], tick_s: float) -> None:
        self.rounds = 0
        self.came: list[list[bytes]] = [[] for _ in pairs]
        self.inbox = Inbox(self._collected, tick_s)
        for (ours, _), came in zip(pairs, self.came, strict=True):
            self.inbox.add(ours.fileno(), lambda data, came=came: came.append(bytes(data)))

    def _collected(self) -> None:
        self.rounds += 1


async def test_the_first_is_heard_at_once_and_the_others_together(pairs: list[Pair]) -> None:
    readers = Readers(pairs, 0.05)
    pairs[0][1].send(b"a")
    await until(lambda: readers.rounds == 1)
    assert readers.came == [[b"a"], [], []]
    for _, other in pairs:
        other.send(b"b")
        other.send(b"c")
    await until(lambda: readers.rounds == 2)
    assert readers.came == [[b"a", b"bc"], [b"bc"], [b"bc"]]
    readers.inbox.close()


async def test_after_silence_it_is_heard_at_once_again(pairs: list[Pair]) -> None:
    readers = Readers(pairs, 0.01)
    for times in range(1, 4):
        pairs[1][1].send(b"a")
        await until(lambda times=times: readers.rounds == times)
        await until(lambda: readers.inbox._timer is None)
    assert readers.came[1] == [b"a"] * 3
    readers.inbox.close()


async def test_an_end_is_told_once_and_one_that_is_dropped_is_read_no_more(pairs: list[Pair]) -> None:
    readers = Readers(pairs, 0.01)
    readers.inbox.drop(pairs[2][0].fileno())
    readers.inbox.drop(pairs[2][0].fileno())
    for _, other in pairs[1:]:
        other.send(b"a")
        other.close()
    await until(lambda: readers.came[1] == [b"a", b""])
    pairs[0][1].send(b"b")
    await until(lambda: readers.came[0] == [b"b"])
    assert readers.came[1:] == [[b"a", b""], []]
    readers.inbox.close()


async def test_one_may_be_dropped_on_account_of_what_another_said(pairs: list[Pair]) -> None:
    came: list[int] = []
    inbox = Inbox(lambda: None)

    def receive(mine: int, other: int) -> None:
        came.append(mine)
        inbox.drop(pairs[other][0].fileno())

    inbox.add(pairs[0][0].fileno(), lambda _: receive(0, 1))
    inbox.add(pairs[1][0].fileno(), lambda _: receive(1, 0))
    for _, other in pairs:
        other.send(b"a")
    await until(lambda: came)
    assert len(came) == 1
    inbox.close()
    inbox.add(pairs[2][0].fileno(), lambda _: came.append(2))
    inbox.drop(pairs[2][0].fileno())
    assert len(came) == 1
