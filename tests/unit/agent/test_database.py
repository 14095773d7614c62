"""Node numbers and chunk look-up across packs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.database import HOLDERS_MAX, Database, Twin, node_name


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "agent.db")
    yield made
    made.close()


def test_node_numbers_are_stable_start_at_two_and_never_return(database: Database) -> None:
    assert database.node_of(b"a" * 32) == 2
    assert database.node_of(b"b" * 32) == 3
    assert database.node_of(b"a" * 32) == 2
    database.forget(3)
    assert database.packs() == {2: b"a" * 32}
    assert database.node_of(b"b" * 32) == 4


def test_node_numbers_survive_a_restart(tmp_path: Path) -> None:
    first = Database(tmp_path / "db")
    first.node_of(b"a" * 32)
    node = first.node_of(b"b" * 32)
    first.forget(node)
    first.close()
    second = Database(tmp_path / "db")
    assert second.node_of(b"a" * 32) == 2
    assert second.node_of(b"c" * 32) == node + 1
    second.close()


def test_twins_are_found_in_other_packs_only(database: Database) -> None:
    one, two = database.node_of(b"a" * 32), database.node_of(b"b" * 32)
    shared, own = bytes(range(32)), bytes(range(32, 64))
    database.add_chunks(one, [(0, own), (1, shared), (2, shared)])
    database.add_chunks(two, [(5, shared), (6, bytes(32))])
    database.add_chunks(two, [(5, shared)])
    assert database.twins(two) == [Twin(5, one, 1)], "one chunk of a pack is enough"
    database.forget(one)
    assert database.twins(two) == []


def test_what_repeats_and_what_many_packs_have_stays_bounded(database: Database) -> None:
    """A disk image of 0xff, layer upon layer: pairs would be counted in millions."""
    chunks = [(number, b"\xff" * 32) for number in range(1000)]
    nodes = [database.node_of(bytes([number]) * 32) for number in range(HOLDERS_MAX + 2)]
    for node in nodes:
        database.add_chunks(node, chunks)
    newest = nodes[-1 - HOLDERS_MAX : -1]
    assert {(twin.other_node, twin.other_number) for twin in database.twins(nodes[-1])} == {(n, 0) for n in newest}
    assert {twin.number for twin in database.twins(nodes[-1])} == set(range(1000))
    found = database.holders(chunks)
    assert {twin.other_node for twin in found} == set(nodes[-HOLDERS_MAX:])
    assert len(found) == 1000 * HOLDERS_MAX


def test_chunks_that_are_recorded_already_are_not_looked_at(database: Database) -> None:
    one, two = database.node_of(bytes(32)), database.node_of(bytes([1]) * 32)
    chunks = [(number, bytes([number]) * 32) for number in range(3)]
    for node in (one, two):
        database.add_chunks(node, chunks)
    unread = iter(chunks)
    database.add_chunks(one, unread)
    assert len(list(unread)) == 3 and len(database.twins(one)) == 3
    database.forget(one)
    assert database.twins(two) == []
    again = database.node_of(bytes(32))
    database.add_chunks(again, unread := iter(chunks))
    assert list(unread) == [] and len(database.twins(again)) == 3


@pytest.mark.parametrize("damage", ["schema", "foreign", "torn"])
def test_a_damaged_file_is_set_aside_and_made_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "db"
    made = Database(path)
    node = made.node_of(b"a" * 32)
    made.add_chunks(node, [(number, bytes([number]) * 32) for number in range(200)])
    made.close()
    if damage == "schema":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        content = bytearray(path.read_bytes())
        content[0 if damage == "foreign" else 4096 :] = b"\xa5" * (100 if damage == "foreign" else len(content) - 4096)
        path.write_bytes(content)
    again = Database(path)
    assert again.packs() == {} and again.node_of(b"a" * 32, 7) == 7
    again.close()
    assert "set aside" in caplog.text and (tmp_path / "db.bad").exists()
    third = Database(path)
    assert third.packs() == {7: b"a" * 32}
    third.close()


def test_memory_takes_the_place_of_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    made = Database(tmp_path / "missing" / "db")
    assert made.node_of(b"a" * 32, 5) == 5 and made.node_of(b"b" * 32) == 6
    made.close()


def test_the_number_that_a_pack_kept_counts_unless_another_has_it(database: Database) -> None:
    database.reserve(9)
    assert database.node_of(b"a" * 32, 5) == 5
    assert database.node_of(b"a" * 32, 6) == 6
    assert database.node_of(b"b" * 32, 6) == 10
    assert database.packs() == {6: b"a" * 32, 10: b"b" * 32}


@given(st.integers(2, 2**64 - 1))
def test_names_are_base_36(node: int) -> None:
    name = node_name(node)
    assert int(name, 36) == node
    assert len(name) <= 13
    assert name == name.lower()
