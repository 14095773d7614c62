"""A supernode's disk: the longest unused goes, never what agents want; what is gone comes again as the same pack."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from test_store_local import RAWS, A, B, write_part

from imgdist.pack.kinds import Kind, early_name
from imgdist.space import Disk, Watermarks
from supernode.metrics import Metrics
from supernode.space import keeper as keeping
from supernode.space.keeper import SpaceKeeper
from supernode.space.policy import StoredPack, plan
from supernode.store import LocalStore

NOW = 1_000_000.0
C, D = ("sha256:" + letters * 32 for letters in ("cc", "dd"))


def pack(name: str, age_s: float, wanted_by: str = "") -> StoredPack:
    return StoredPack(name, 100, NOW - age_s, wanted_by)


def test_the_longest_unused_goes_first_and_no_more_than_is_needed() -> None:
    decided = plan(
        [pack("b", 500), pack("a", 900), pack("wanted", 990, "agents"), pack("young", 20), pack("c", 400)],
        150,
        retention_s=60,
        now=NOW,
    )
    assert [victim.pack_id for victim in decided.victims] == ["a", "b"]
    assert {kept.pack_id: kept.why for kept in decided.kept} == {
        "wanted": "wanted by agents",
        "young": "used 20 s ago, kept for 60 s",
        "c": "no space is needed",
    }


class Rig:
    """A store of two packs, the first one with a twin, and a keeper of a disk that is as full as the test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.store = LocalStore(root)
        self.store.recover()
        self.first = self.store.seal(A, write_part(self.store, A)).pack_id.hex()
        assert self.store.seal(B, write_part(self.store, B)).pack_id.hex() == self.first
        self.second = self.store.seal(C, write_part(self.store, C, RAWS[1:])).pack_id.hex()
        self.disk = Disk(1 << 30, 1 << 29)
        self.wanted: set[str] = set()
        self.under_way: list[tuple[str, Kind]] = []
        monkeypatch.setattr(keeping, "disk_of", lambda path: self.disk)
        self.keeper = self.made(joining_s=0)

    def made(self, *, joining_s: float) -> SpaceKeeper:
        return SpaceKeeper(
            self.store,
            self.root,
            Watermarks(0.8, 0.7),
            Metrics(),
            retention_s=100,
            wanted=lambda: self.wanted,
            under_way=lambda: self.under_way,
            joining_s=joining_s,
        )

    def age(self, pack_id: str, seconds: float) -> None:
        at = time.time() - seconds
        os.utime(self.root / "packs" / pack_id / "table", (at, at))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


async def test_nothing_goes_below_the_watermark(rig: Rig) -> None:
    rig.age(rig.first, 1000)
    await rig.keeper.look()
    assert len(rig.store.pack_ids()) == 2


async def test_what_nobody_used_for_long_goes_with_all_its_names_and_comes_again(rig: Rig) -> None:
    rig.disk = Disk(1 << 30, 0)
    rig.age(rig.first, 1000)
    await rig.keeper.look()
    assert rig.store.pack_ids() == [rig.second]
    assert (rig.store.find(A), rig.store.find(B)) == (None, None)
    assert rig.store.seal(A, write_part(rig.store, A)).pack_id.hex() == rig.first


async def test_what_agents_lack_chunks_of_stays_whatever_they_call_it(rig: Rig) -> None:
    rig.disk = Disk(1 << 30, 0)
    rig.age(rig.first, 1000)
    rig.age(rig.second, 1000)
    rig.wanted = {early_name(B), rig.second}
    await rig.keeper.look()
    assert len(rig.store.pack_ids()) == 2
    rig.wanted = {rig.second}
    report = await rig.keeper.collect()
    assert [gone.pack_id for gone in report.removed] == [rig.first]
    assert [(kept.pack_id, kept.why) for kept in report.kept] == [(rig.second, "wanted by agents")]


async def test_right_after_a_start_any_pack_may_be_wanted(rig: Rig) -> None:
    rig.age(rig.first, 1000)
    rig.age(rig.second, 1000)
    rig.wanted = {rig.second}
    report = await rig.made(joining_s=60).collect()
    assert not report.removed
    assert {kept.pack_id: kept.why for kept in report.kept} == {
        rig.first: "wanted by agents, perhaps: not all may have joined yet",
        rig.second: "wanted by agents",
    }


async def test_being_resolved_served_or_converted_again_is_a_use(rig: Rig) -> None:
    rig.age(rig.first, 1000)
    rig.age(rig.second, 1000)
    rig.store.seal(A, write_part(rig.store, A))
    reader = LocalStore(rig.root).open(early_name(C))
    assert reader is not None
    assert not (await rig.keeper.collect()).removed


async def test_a_use_after_the_look_keeps_a_pack(rig: Rig) -> None:
    seen = rig.store.last_use(rig.first)
    rig.age(rig.first, -1)
    assert not rig.store.remove(rig.first, unused_since=seen)
    assert rig.store.find(A) == rig.first


async def test_one_that_cannot_be_removed_or_is_used_again_stays_and_the_others_go(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.store.seal(D, write_part(rig.store, D, RAWS[2:]))
    third = rig.store.find(D)
    assert third is not None
    for pack_id, age_s in ((rig.first, 3000), (rig.second, 2000), (third, 1000)):
        rig.age(pack_id, age_s)
    original = rig.store.remove

    def remove(pack_id: str, *, unused_since: float | None = None) -> bool:
        if pack_id == rig.first:
            raise OSError(errno.EPERM, "Operation not permitted")
        if pack_id == rig.second:
            rig.store.used(rig.second)
        return original(pack_id, unused_since=unused_since)

    monkeypatch.setattr(rig.store, "remove", remove)
    report = await rig.keeper.collect()
    assert [gone.pack_id for gone in report.removed] == [third]
    assert {kept.pack_id: kept.why for kept in report.kept} == {
        rig.first: "cannot be removed: [Errno 1] Operation not permitted",
        rig.second: "used again meanwhile",
    }


async def test_readers_finish_and_then_let_go(rig: Rig) -> None:
    other = LocalStore(rig.root)
    reader = other.open(rig.first)
    assert reader is not None
    rig.age(rig.first, 1000)
    assert (await rig.keeper.collect()).removed
    assert reader.body(0)[1], "what is being sent is sent to its end"
    del reader
    other.forget_gone()
    opened = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in opened if rig.first in path and "deleted" in path]


async def test_leftovers_go_but_not_what_is_being_converted(rig: Rig) -> None:
    alive, dead = "sha256:" + "dd" * 32, "sha256:" + "ee" * 32
    for digest in (alive, dead):
        rig.store.begin(digest)
    (rig.root / "packs" / f".removed-{rig.first}").mkdir()
    rig.under_way = [(alive, Kind.LAYER)]
    await rig.keeper.collect()
    left = [path.name for path in (rig.root / "packs").iterdir() if path.name.startswith(".")]
    assert left == [f".part-{'dd' * 32}-v0"]


def test_a_layer_that_is_begun_while_leftovers_go_keeps_its_part(rig: Rig) -> None:
    """An earlier try's part was found; its conversion had ended by then, and the next one begins."""
    digest = "sha256:" + "dd" * 32
    rig.store.begin(digest)
    again = threading.Thread(target=rig.store.begin, args=(digest,))

    def under_way() -> list[tuple[str, Kind]]:
        again.start()
        again.join(0.2)
        return []

    rig.store.clear_leftovers(under_way)
    again.join()
    assert (rig.root / "packs" / f".part-{'dd' * 32}-v0").is_dir()


def test_a_layer_that_goes_while_all_are_listed_is_left_out(rig: Rig) -> None:
    listed = rig.store.layers()
    assert next(listed) == (A, rig.first)
    rig.store.remove(rig.first)
    assert list(listed) == [(C, rig.second)]


async def test_a_dry_run_changes_nothing(rig: Rig) -> None:
    rig.age(rig.first, 1000)
    report = await rig.keeper.collect(dry_run=True)
    assert report.freed_bytes == rig.store.pack_bytes(rig.first) and len(rig.store.pack_ids()) == 2
