"""`imgdist simulate`: one document on stdout, a picture where asked for, and plain words for wrong figures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from imgdist import cli


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_document_and_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    words = ("--nodes", "12", "--chunks", "60", "--link", "50", "--supernode-link", "100", "--seed", "3")
    assert _run("simulate", *words, "--svg", str(picture), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["nodes"], told["chunks"], told["completed"], told["seed"]) == (12, 60, 12, 3)
    assert (told["up_bits_per_s"], told["supernode_bits_per_s"]) == (50e6, 100e6)
    assert told["ratio"] >= 1.0 and told["supernode_share"] >= 1.0
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _run(
            "simulate", "--nodes", "8", "--chunks", "40", "--slow", "0.25", "--dying", "0.125", "--start-within", "0.1"
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "8 nodes, 40 chunks" in out and "T*" in out and "vanished" in out and "nodes not slow" in out


def test_all_nodes_may_be_slow(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("simulate", "--nodes", "4", "--chunks", "10", "--slow", "1") == 0
    assert "all complete" in capsys.readouterr().out


NOT_NUMBERS = [
    (flag, value)
    for flag in ("--link", "--up", "--supernode-link", "--latency", "--loss", "--slow", "--dying", "--supernode-dies")
    for value in ("nan", "inf")
]


@pytest.mark.parametrize(
    "words", [("--link", "0"), ("--nodes", "0"), ("--latency", "-1"), ("--slow", "2"), *NOT_NUMBERS]
)
def test_wrong_figures_are_wrong_usage(capsys: pytest.CaptureFixture[str], words: tuple[str, str]) -> None:
    assert _run("simulate", *words) == 2
    assert capsys.readouterr().err.strip()


def test_a_picture_that_cannot_be_written_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("simulate", "--nodes", "100000", "--svg", "/nonexistent/x.svg") == 1  # at once
    assert capsys.readouterr().err == "imgdist: /nonexistent/x.svg: No such file or directory\n"
