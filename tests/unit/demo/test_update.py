"""The release before and the update: what tells them apart, and what is said of it."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from imgdist.demo.debian import security_updates
from imgdist.demo.recipe import BEFORE, LATEST, Release, _application
from imgdist.demo.start import Start
from imgdist.demo.update import Update

_FRESH = Start("imgdist", 0.5, 3.0, 3.1, "line", 0, filled_s=10.0, fetched_bytes=80_000_000)
_START = replace(_FRESH, first_output_s=2.5, filled_s=4.0, fetched_bytes=20_000_000, copied_bytes=150_000_000)


def test_saved_is_what_the_fresh_node_fetched_or_waited_more() -> None:
    what, spared, seconds = Update(_START, _FRESH, 9, 8).notes()
    assert "of whose 9 layers 8 are new" in what
    assert "60.0 of 80.0 MB of chunks (75%)" in spared and "150 MB raw" in spared
    assert "0.50 s (2.50 instead of 3.00) to the first output" in seconds
    assert "6.00 s (4.00 instead of 10.00) until all" in seconds


def test_time_lost_is_said_as_well() -> None:
    assert "-0.50 s (3.00 instead of 2.50)" in Update(_FRESH, _START, 9, 9).notes()[2]


def test_the_document_has_both_nodes() -> None:
    document = Update(_START, _FRESH, 9, 8).as_json()
    assert (document["seconds"], document["fresh_seconds"]) == (2.5, 3.0)
    assert (document["fetched_bytes"], document["fresh_fetched_bytes"]) == (20_000_000, 80_000_000)


@pytest.mark.parametrize("release", [BEFORE, LATEST])
def test_the_application_names_its_release(tmp_path: Path, release: Release) -> None:
    _application(release)(tmp_path)
    main = (tmp_path / "app/main.py").read_text()
    ast.parse(main)
    assert f'f"release {release.name}: {{line}}' in main


def test_apt_knows_the_security_updates_while_it_is_told_to(tmp_path: Path) -> None:
    lists = tmp_path / "etc/apt/sources.list.d"
    lists.mkdir(parents=True)
    with security_updates(tmp_path):
        (found,) = lists.iterdir()
        assert found.read_text() == "deb http://deb.debian.org/debian-security bookworm-security main\n"
    assert not list(lists.iterdir())
