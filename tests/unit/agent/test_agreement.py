"""Several supernodes must name the same pack: who is asked, who counts, what is refused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agent.agreement import DisagreementError, Named, agreed, ask_all
from imgdist.errors import DeclinedError, ImgdistError, NotFoundError, TemporaryError
from imgdist.wire.control import LayerStatus

LAYER, MANIFEST = "sha256:" + "a" * 64, "sha256:" + "b" * 64
P, Q = "1" * 64, "2" * 64
AWAY = TemporaryError("the supernode at c does not answer")


@pytest.mark.parametrize(
    ("named", "count"),
    [
        ([("a", P)], 1),
        ([("a", P), ("b", P)], 2),
        ([("a", P), ("c", AWAY), ("b", P)], 2),
    ],
)
def test_so_many_name_the_same(named: list[Named], count: int) -> None:
    assert agreed(LAYER, named, count) == P


def test_a_disagreement_names_both() -> None:
    with pytest.raises(DisagreementError, match=f"at a names pack {P}, the one at b names {Q}") as raised:
        agreed(LAYER, [("a", P), ("c", AWAY), ("b", Q)], 2)
    assert raised.value.pack_ids == [P, Q]


@pytest.mark.parametrize("named", [[("a", P), ("c", AWAY)], [("c", AWAY)], [("c", AWAY), ("a", P)]])
def test_too_few_are_not_enough(named: list[Named]) -> None:
    count = sum(isinstance(pack, str) for _, pack in named)
    with pytest.raises(TemporaryError, match=f"{count} of 2 supernodes name a pack .*: the supernode at c does not"):
        agreed(LAYER, named, 2)


class FakeSupernode:
    """`pack` is what it names, or raises; `state` of the layer before it is asked for."""

    def __init__(self, url: str, pack: str | ImgdistError, state: str | None = "ready") -> None:
        self.url, self.pack, self.state = url, pack, state
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def layer(self, digest: str) -> LayerStatus:
        self.asked.append("layer")
        if self.state is None:
            raise NotFoundError("nobody has resolved an image that has it")
        if isinstance(self.pack, ImgdistError):
            raise self.pack
        return LayerStatus(digest, self.state, self.pack if self.state == "ready" else None)  # type: ignore[arg-type]

    async def resolve(self, reference: str, *, platform: str, manifest_digest: str) -> None:
        self.asked.append(f"resolve {reference} {platform} {manifest_digest[:10]}")

    async def follow_index(self, digest: str) -> tuple[Any, bytes]:
        self.asked.append("index")
        await self.gate.wait()
        if isinstance(self.pack, ImgdistError):
            raise self.pack
        return SimpleNamespace(pack_id=bytes.fromhex(self.pack)), b""


async def asked(count: int, *supernodes: FakeSupernode) -> dict[str, str | ImgdistError]:
    clients: Any = supernodes
    return dict(await ask_all(clients, LAYER, "reg/app:1", "linux/amd64", MANIFEST, count))


async def test_each_converts_the_layer_for_itself_if_it_has_to() -> None:
    ready, converting = FakeSupernode("a", P), FakeSupernode("b", P, "converting")
    absent, unknown = FakeSupernode("c", P, "absent"), FakeSupernode("d", P, None)
    assert await asked(4, ready, converting, absent, unknown) == dict.fromkeys("abcd", P)
    resolved = "resolve reg/app:1 linux/amd64 sha256:bbb"
    assert [one.asked for one in (ready, converting, absent, unknown)] == [
        ["layer"], ["layer", "index"], ["layer", resolved, "index"], ["layer", resolved, "index"],
    ]  # fmt: skip


async def test_nobody_waits_for_more_than_are_needed() -> None:
    slow = FakeSupernode("slow", P, "converting")
    slow.gate.clear()
    async with asyncio.timeout(10):
        named = await asked(2, slow, FakeSupernode("a", P), FakeSupernode("b", Q))
    assert named == {"a": P, "b": Q}


async def test_who_cannot_say_is_told_with_the_reason() -> None:
    declined = DeclinedError("hard link to a lower layer")
    named = await asked(2, FakeSupernode("a", P), FakeSupernode("b", declined, "converting"))
    assert named == {"a": P, "b": declined}
