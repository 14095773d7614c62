"""The rules of containerd's own metadata store (core/snapshots/storage)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.snapshotter.labels import SNAPSHOT_REF
from agent.snapshotter.metadata import Metadata
from agent.snapshotter.model import AlreadyExistsError, Kind, PreconditionError, Usage
from imgdist.errors import NotFoundError, UsageError

REF = "sha256:" + "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Metadata]:
    metadata = Metadata(tmp_path / "db")
    yield metadata
    metadata.close()


def committed(store: Metadata, name: str, parent: str = "", labels: dict[str, str] | None = None) -> None:
    store.create(Kind.ACTIVE, f"{name}-key", parent, {})
    store.commit(name, f"{name}-key", labels or {}, "", Usage(5, 1))


def test_create_commit_stat(store: Metadata) -> None:
    row = store.create(Kind.ACTIVE, "key", "", {"a": "1", "empty": ""})
    assert (row.info.kind, row.info.parent, dict(row.info.labels)) == (Kind.ACTIVE, "", {"a": "1"})
    store.commit("name", "key", {"b": "2"}, "", Usage(4096, 2))
    done = store.get("name")
    assert (done.id, done.info.kind, dict(done.info.labels)) == (row.id, Kind.COMMITTED, {"b": "2"})
    assert done.usage == Usage(4096, 2) and done.info.created_ns >= row.info.created_ns
    with pytest.raises(NotFoundError):
        store.get("key")


def test_names_and_keys_share_one_space(store: Metadata) -> None:
    committed(store, "a")
    store.create(Kind.ACTIVE, "b", "a", {})
    for taken in ("a", "b"):
        with pytest.raises(AlreadyExistsError):
            store.create(Kind.VIEW, taken, "", {})
    with pytest.raises(AlreadyExistsError):
        store.commit("a", "b", {}, "", Usage())
    assert store.get("b").info.kind == Kind.ACTIVE


def test_parents_exist_and_are_committed(store: Metadata) -> None:
    store.create(Kind.ACTIVE, "active", "", {})
    with pytest.raises(NotFoundError):
        store.create(Kind.ACTIVE, "x", "nowhere", {})
    with pytest.raises(UsageError, match="active"):
        store.create(Kind.ACTIVE, "x", "active", {})
    with pytest.raises(UsageError, match="key"):
        store.create(Kind.ACTIVE, "", "", {})


def test_only_active_snapshots_commit(store: Metadata) -> None:
    committed(store, "a")
    store.create(Kind.VIEW, "view", "a", {})
    for key in ("a", "view"):
        with pytest.raises(PreconditionError):
            store.commit("b", key, {}, "", Usage())
    with pytest.raises(NotFoundError):
        store.commit("b", "nowhere", {}, "", Usage())


def test_commit_gives_a_parent_once(store: Metadata) -> None:
    committed(store, "a")
    committed(store, "b")
    store.create(Kind.ACTIVE, "k1", "", {})
    store.commit("c", "k1", {}, "a", Usage())
    assert store.get("c").info.parent == "a"
    store.create(Kind.ACTIVE, "k2", "a", {})
    with pytest.raises(UsageError, match="parent"):
        store.commit("d", "k2", {}, "b", Usage())
    with pytest.raises(PreconditionError, match="built on"):
        store.remove("a")


def test_remove_goes_from_the_top(store: Metadata) -> None:
    committed(store, "a")
    committed(store, "b", "a")
    with pytest.raises(PreconditionError, match="'b'"):
        store.remove("a")
    store.remove("b")
    store.remove("a")
    with pytest.raises(NotFoundError):
        store.remove("a")
    assert store.walk() == []


def test_numbers_are_never_used_twice(store: Metadata) -> None:
    first = store.create(Kind.ACTIVE, "a", "", {}).id
    store.remove("a")
    assert store.create(Kind.ACTIVE, "a", "", {}).id > first


def test_chain_and_chain_id(store: Metadata) -> None:
    committed(store, f"default/5/{REF}")
    committed(store, "named", f"default/5/{REF}", {SNAPSHOT_REF: REF})
    rows = [store.get("named"), store.get(f"default/5/{REF}")]
    assert [lower.id for lower in store.chain("named")] == [row.id for row in rows]
    assert [row.chain_id for row in rows] == [REF, REF]
    assert store.chain("") == []
    with pytest.raises(NotFoundError, match="nowhere"):
        store.chain("nowhere")
    assert store.create(Kind.ACTIVE, f"default/6/{REF}", "", {}).chain_id is None


def test_update_masks(store: Metadata) -> None:
    committed(store, "a", labels={"x": "1", "y": "2"})
    info = replace(store.get("a").info, labels={"x": "9", "z": "3"})
    assert dict(store.update(info, ["labels.x"]).info.labels) == {"x": "9", "y": "2"}
    assert dict(store.update(info, ["labels.y"]).info.labels) == {"x": "9"}
    assert dict(store.update(info, []).info.labels) == {"x": "9", "z": "3"}
    assert dict(store.update(replace(info, labels={"q": "1"}), ["labels"]).info.labels) == {"q": "1"}
    with pytest.raises(UsageError, match="'kind'"):
        store.update(info, ["kind"])
    with pytest.raises(NotFoundError):
        store.update(replace(info, name="nowhere"), [])
    assert dict(store.get("a").info.labels) == {"q": "1"}


def test_walk_filters(store: Metadata) -> None:
    committed(store, "a", labels={SNAPSHOT_REF: REF})
    committed(store, "b", "a")
    store.create(Kind.VIEW, "v", "b", {})
    assert [row.info.name for row in store.walk(["kind==view", "parent==a"])] == ["b", "v"]
    assert [row.info.name for row in store.walk([f'labels."{SNAPSHOT_REF}"=={REF},parent==""'])] == ["a"]


def test_packs_are_released_when_the_last_user_goes(store: Metadata) -> None:
    store.create(Kind.COMMITTED, "one", "", {SNAPSHOT_REF: REF}, pack_id="p", has_directory=False)
    store.create(Kind.COMMITTED, "two", "one", {SNAPSHOT_REF: REF}, pack_id="p", has_directory=False)
    assert store.packs() == ["p"] and store.directories() == {}
    assert store.is_first_of_pack(store.get("one")) and not store.is_first_of_pack(store.get("two"))
    found = store.taken_over(REF, "one")
    assert found is not None and found.info.name == "two"
    assert store.taken_over(REF, "elsewhere") is None
    store.remove("two")
    assert store.unreferenced() == []
    store.remove("one")
    assert store.unreferenced() == ["p"]
    store.create(Kind.COMMITTED, "again", "", {}, pack_id="p", has_directory=False)
    assert store.unreferenced() == []
    store.remove("again")
    store.released("p")
    assert store.unreferenced() == [] and store.packs() == []


def test_a_plain_snapshot_with_the_label_was_not_taken_over(store: Metadata) -> None:
    committed(store, "a", labels={SNAPSHOT_REF: REF})
    assert store.taken_over(REF, "") is None


def test_a_failed_transaction_leaves_nothing(store: Metadata) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.create(Kind.ACTIVE, "a", "", {})
        raise RuntimeError
    assert store.walk() == []


def test_state_survives_a_restart(tmp_path: Path) -> None:
    first = Metadata(tmp_path / "db")
    first.create(Kind.COMMITTED, "a", "", {"l": "1"}, pack_id="p", has_directory=False)
    before = first.get("a")
    first.close()
    second = Metadata(tmp_path / "db")
    assert second.get("a") == before
    second.close()


def test_who_uses_a_pack_are_containers_and_mounts_over_it(store: Metadata) -> None:
    store.create(Kind.COMMITTED, "lazy", "", {}, pack_id="p1", has_directory=False)
    committed(store, "plain", "lazy")
    store.create(Kind.COMMITTED, "top", "plain", {}, pack_id="p2", has_directory=False)
    store.create(Kind.ACTIVE, "container", "top", {})
    store.create(Kind.VIEW, "look", "plain", {})
    store.create(Kind.ACTIVE, "empty", "", {})
    found = [(pack_id, info.name) for pack_id, info in store.users()]
    assert found == [("p1", "container"), ("p1", "look"), ("p2", "container")]


def test_a_pack_is_replaced_below_its_snapshots(store: Metadata) -> None:
    store.create(Kind.COMMITTED, "a", "", {}, pack_id="old", has_directory=False)
    store.create(Kind.COMMITTED, "b", "a", {}, pack_id="other", has_directory=False)
    store.create(Kind.ACTIVE, "c", "b", {})
    assert [info.name for info in store.replace_pack("old", "new")] == ["c"]
    assert [row.pack_id for row in store.chain("c")] == [None, "other", "new"]
    assert store.unreferenced() == ["old"]
    assert {pack for pack, _ in store.users()} == {"new", "other"}
