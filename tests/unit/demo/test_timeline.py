"""The picture of a start: phases, load, and that both renderings hold the figures."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from imgdist.demo.start import Start
from imgdist.demo.svg import drawing
from imgdist.demo.timeline import FILL, PULL, RUN, end_of, load, phases, picture

LINK = 8_000_000  # 1 MB/s


def _start(what: str, pulled: float, first: float, filled: float | None = None) -> Start:
    end = filled or first
    samples = [(end * i / 100, round(end * i / 100 * 1e6)) for i in range(101)]
    return Start(
        what, pulled, first, first + 0.1, "line\n", round(first * 1e6), round(end * 1e6), filled, samples=samples
    )


def test_phases_have_no_gaps() -> None:
    assert phases(_start("x", 1, 3)) == [(PULL, 0.0, 1), (RUN, 1, 3)]
    assert phases(_start("x", 1, 3, 7)) == [(PULL, 0.0, 1), (RUN, 1, 3), (FILL, 3, 7)]


def test_a_fill_that_ended_before_the_output_is_no_phase() -> None:
    assert FILL not in [name for name, _, _ in phases(_start("x", 1, 3, 2))]


def test_a_full_link_is_full_and_then_empty() -> None:
    shares = load(_start("x", 1, 4), 8, 8.0, LINK)
    assert shares[:4] == pytest.approx([1, 1, 1, 1], abs=0.06)
    assert shares[4:] == [0, 0, 0, 0]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**9)), max_size=30), st.integers(1, 80))
def test_load_is_a_share_whatever_was_sampled(raw: list[tuple[float, int]], columns: int) -> None:
    moments, counts = sorted(moment for moment, _ in raw), sorted(count for _, count in raw)
    start = Start("x", 1, 2, 3, "", 0, samples=list(zip(moments, counts, strict=True)))
    shares = load(start, columns, 100.0, LINK)
    assert len(shares) == columns
    assert all(0 <= share <= 1 for share in shares)


def test_the_axis_ends_with_the_last_fill() -> None:
    assert end_of([_start("a", 1, 3), _start("b", 1, 2, 9)]) == 9


def test_the_terminal_picture_fits_80_columns_and_names_the_figures() -> None:
    out = io.StringIO()
    starts = [_start("plain", 8, 10), _start("imgdist, first", 0.5, 3, 11), _start("imgdist", 0.5, 2, 11)]
    Console(file=out, width=80).print(picture(starts, LINK))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("imgdist, first" in line and "3.00 s" in line and "0.30" in line for line in lines)
    assert sum("●" in line for line in lines) == 4  # three starts and the legend


def test_the_drawing_is_xml_with_a_bar_a_phase() -> None:
    starts = [_start("plain", 8, 10), _start("a <b> & c", 0.5, 2, 11)]
    root = ElementTree.fromstring(drawing(starts, LINK, "title"))
    tag = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.get("width", "0")) for bar in root.findall(f"{tag}rect") if bar.get("height") == "22"]
    assert len(widths) == 5
    assert sum(widths[:2]) == pytest.approx(640 * 10 / 11, abs=0.3)
    assert sum(widths[2:]) == pytest.approx(640, abs=0.3)
    assert "a <b> & c" in [text.text for text in root.findall(f"{tag}text")]


def test_notes_stand_below_everything_and_inside_the_drawing() -> None:
    root = ElementTree.fromstring(drawing([_start("plain", 8, 10)], LINK, "title", ["one", "two"]))
    places = {text.text: float(text.get("y", "0")) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert max(places, key=lambda name: places[name]) == "two"
    assert places["0 s"] < places["one"] < places["two"] < float(root.get("height", "0"))
