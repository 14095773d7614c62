"""Node numbers and chunk look-up across packs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.database import Database, Twin, node_name


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
    assert sorted(database.twins(two), key=str) == [Twin(5, one, 1), Twin(5, one, 2)]
    database.forget(one)
    assert database.twins(two) == []


def test_another_schema_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(sqlite3.DatabaseError, match="schema version 99"):
        Database(tmp_path / "db")


@given(st.integers(2, 2**64 - 1))
def test_names_are_base_36(node: int) -> None:
    name = node_name(node)
    assert int(name, 36) == node
    assert len(name) <= 13
    assert name == name.lower()
