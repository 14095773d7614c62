"""A supernode's look at its packs: what is false is revoked, what is damaged replaced, reports are not believed."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from forged_pack import flip_first, forge
from raw_tar import END, directory, file, hard_link

from imgdist.errors import NotFoundError, TemporaryError
from imgdist.proving.process import When
from imgdist.proving.verdict import Verdict
from supernode.convert.pipeline import Options, convert
from supernode.proving import prover
from supernode.proving.prover import Prover, prove_pack
from supernode.store import LocalStore
from supernode.store.writer import PackWriter

LAYER = "sha256:" + "aa" * 32
TAR = directory(b"d/") + file(b"d/f", random.Random(1).randbytes(300_000)) + hard_link(b"h", b"d/f") + END


def stored(root: Path, digest: str = LAYER, tar: bytes = TAR) -> str:
    """A converted layer in the store at `root`; its pack id."""
    store = LocalStore(root)
    store.recover()
    return converted(store, digest, tar)


def converted(store: LocalStore, digest: str = LAYER, tar: bytes = TAR) -> str:
    sink = PackWriter(store.begin(digest), digest)
    pack_id = convert(io.BytesIO(tar), sink, Options(threads=1)).pack_id
    store.seal(digest, pack_id)
    return pack_id.hex()


class World:
    """A prover of one store, whose looks end as `verdicts` say; really looks if there are none."""

    def __init__(self, root: Path, *verdicts: Verdict, every_s: float = 0.0) -> None:
        self.store = LocalStore(root)
        self.store.recover()
        self.verdicts = list(verdicts)
        self.looks: list[str] = []
        self.outcomes: list[str] = []
        self.revoked: list[tuple[str, str]] = []
        self.again: list[str] = []
        self.gate, self.looking = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.prover = Prover(
            self.store, self, every_s=every_s, revoked=self._revoked, again=self._again, prove=self._prove
        )

    def proved(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    async def _revoked(self, pack_id: str, reason: str) -> None:
        self.revoked.append((pack_id, reason))

    def _again(self, digests: Sequence[str]) -> None:
        self.again += digests

    async def _prove(self, directory: Path, when: When) -> Verdict:
        self.looks.append(directory.name)
        self.looking.set()
        await self.gate.wait()
        return self.verdicts.pop(0) if self.verdicts else await prove_pack(directory, when)


async def test_a_right_pack_is_proven(tmp_path: Path) -> None:
    pack_id = stored(tmp_path)
    world = World(tmp_path)
    assert await world.prover.look(pack_id) == Verdict("proven")
    assert (world.outcomes, world.revoked, world.again) == (["proven"], [], [])
    assert world.store.find(LAYER) == pack_id


@pytest.mark.parametrize("metadata", [False, True])
async def test_a_consistent_lie_is_found_and_revoked(tmp_path: Path, metadata: bool) -> None:
    """Every checksum is right; what the kernel would show is not what the layer's tar says."""
    honest = stored(tmp_path)
    pack_id = forge(
        tmp_path, honest, flip_first if not metadata else lambda raw: raw[:70] + b"\1" + raw[71:], metadata=metadata
    )
    world = World(tmp_path)
    assert world.store.find(LAYER) == pack_id != honest
    assert world.store.verify(pack_id) == []
    verdict = await world.prover.look(pack_id)
    assert verdict.outcome == "false"
    assert world.revoked == [(pack_id, verdict.reason)]
    assert world.again == [LAYER]
    assert world.store.find(LAYER) is None
    assert len(world.looks) == 2
    assert await world.prover.look(pack_id) == verdict, "told again without a look"
    assert len(world.looks) == 2


async def test_a_flipped_bit_on_the_disk_is_damage(tmp_path: Path) -> None:
    """The layer is converted again, and what is sealed then takes the place of what is damaged."""
    pack_id = stored(tmp_path)
    chunks = tmp_path / "packs" / pack_id / "chunks"
    raw = chunks.read_bytes()
    chunks.write_bytes(flip_first(raw[::-1])[::-1])
    world = World(tmp_path)
    verdict = await world.prover.look(pack_id)
    assert verdict.outcome == "damaged"
    assert "1 of" in verdict.reason
    assert world.again == [LAYER]
    assert world.store.find(LAYER) == pack_id, "what is in order is served meanwhile"
    assert world.store.is_damaged(LAYER)
    assert converted(world.store) == pack_id
    assert not world.store.is_damaged(LAYER)
    assert (await world.prover.look(pack_id)).outcome == "proven"


@pytest.mark.parametrize("name", ["index", "tar-split", "table"])
async def test_whatever_is_damaged_nothing_is_revoked(tmp_path: Path, name: str) -> None:
    pack_id = stored(tmp_path)
    world = World(tmp_path)
    path = tmp_path / "packs" / pack_id / name
    path.write_bytes(flip_first(path.read_bytes()))
    assert (await world.prover.look(pack_id)).outcome in ("damaged", "unproven")
    assert world.revoked == []


async def test_two_looks_that_differ_revoke_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack_id = stored(tmp_path)
    world = World(tmp_path, Verdict("false", "a bit"), Verdict("proven"))
    with caplog.at_level(logging.ERROR):
        assert (await world.prover.look(pack_id)).outcome == "unproven"
    assert "is this machine in order?" in caplog.text
    assert world.store.find(LAYER) == pack_id


async def test_many_reports_are_one_look(tmp_path: Path) -> None:
    pack_id = stored(tmp_path)
    world = World(tmp_path, Verdict("proven"), Verdict("proven"))
    world.gate.clear()
    asking = [asyncio.create_task(world.prover.look(pack_id, fresh=False)) for _ in range(20)]
    await world.looking.wait()
    world.gate.set()
    assert set(await asyncio.gather(*asking)) == {Verdict("proven")}
    await world.prover.look(pack_id, fresh=False)
    assert len(world.looks) == 1
    await world.prover.look(pack_id)
    assert len(world.looks) == 2


async def test_what_is_not_here_and_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = [stored(tmp_path, f"sha256:{n:064x}", file(b"%d" % n, b"x") + END) for n in range(3)]
    world = World(tmp_path, *[Verdict("proven")] * 3)
    with pytest.raises(NotFoundError):
        await world.prover.look("0" * 64)
    monkeypatch.setattr(prover, "WAITING_MAX", 2)
    world.gate.clear()
    asking = [asyncio.create_task(world.prover.look(pack)) for pack in packs[:2]]
    await world.looking.wait()
    with pytest.raises(TemporaryError, match="ask again later"):
        await world.prover.look(packs[2])
    world.gate.set()
    await asyncio.gather(*asking)


async def test_a_node_that_asks_about_everything_leaves_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prover, "ASKED_MAX", 2)
    packs = [stored(tmp_path, f"sha256:{n:064x}", file(b"%d" % n, b"x") + END) for n in range(4)]
    world = World(tmp_path, *[Verdict("proven")] * 4)
    world.gate.clear()
    asking = [asyncio.create_task(world.prover.look(pack, by="10.0.0.1")) for pack in packs[:2]]
    await world.looking.wait()
    with pytest.raises(TemporaryError, match=r"for 10\.0\.0\.1 already"):
        await world.prover.look(packs[2], by="10.0.0.1")
    asking.append(asyncio.create_task(world.prover.look(packs[3], by="10.0.0.2")))
    world.gate.set()
    assert await asyncio.gather(*asking) == [Verdict("proven")] * 3
    assert await world.prover.look(packs[2], by="10.0.0.1") == Verdict("proven")


async def test_who_asks_does_not_wait_for_what_has_only_idle_processors(tmp_path: Path) -> None:
    due, asked = (stored(tmp_path, f"sha256:{n:064x}", file(b"%d" % n, b"x") + END) for n in range(2))
    world = World(tmp_path, Verdict("proven"), Verdict("proven"))
    world.gate.clear()
    idle = asyncio.create_task(world.prover.look(due, when="idle"))
    await world.looking.wait()
    world.looking.clear()
    answer = asyncio.create_task(world.prover.look(asked, fresh=False))
    async with asyncio.timeout(30):
        await world.looking.wait()
    assert world.looks == [due, asked]
    world.gate.set()
    assert set(await asyncio.gather(idle, answer)) == {Verdict("proven")}


async def test_a_disk_that_takes_no_revocation_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pack is due again, and revoked when there is room."""
    pack_id = stored(tmp_path)
    os.utime(tmp_path / "packs" / pack_id / "index", (0, 0))
    monkeypatch.setattr(prover, "LOOK_S", 0)
    world = World(tmp_path, *[Verdict("false", "a lie")] * 4, every_s=1000)
    revoke, tries = world.store.revoke, 0

    def full_at_first(pack_id: str, reason: str) -> list[str]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return revoke(pack_id, reason)

    monkeypatch.setattr(world.store, "revoke", full_at_first)
    running = asyncio.create_task(world.prover.run())
    async with asyncio.timeout(30):
        while not world.revoked and not running.done():  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.005)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.revoked == [(pack_id, "a lie")]
    assert "No space left" in caplog.text


def test_revocations_may_be_gone_through_while_one_is_added(tmp_path: Path) -> None:
    revoked = LocalStore(tmp_path).revoked
    revoked.load()
    revoked.add("a" * 64, "first")
    told = iter(revoked.all())
    revoked.add("b" * 64, "second")
    assert list(told) == ["a" * 64]
    assert list(revoked.all()) == ["a" * 64, "b" * 64]


async def test_packs_are_looked_at_when_they_are_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unproved first; an unproven one does not keep the others from it."""
    packs = [stored(tmp_path, f"sha256:{n:064x}", file(b"%d" % n, b"x") + END) for n in range(3)]
    for age, pack in enumerate(packs):
        os.utime(tmp_path / "packs" / pack / "index", (age, age))
    os.utime(tmp_path / "packs" / packs[2] / "index")
    monkeypatch.setattr(prover, "LOOK_S", 0)
    world = World(tmp_path, Verdict("unproven", "no memory"), Verdict("proven"), every_s=1000)
    running = asyncio.create_task(world.prover.run())
    async with asyncio.timeout(10):
        while len(world.outcomes) < 2:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.looks == packs[:2]
