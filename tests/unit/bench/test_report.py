from __future__ import annotations

import json
from pathlib import Path

from bench.__main__ import names
from bench.report import Report, Row

COST = Row("cost", 9.0, 10.0, "s")
RATE = Row("rate", 100.0, 120.0, "MB/s", at_least=True)
PLAIN = Row("size", 5.0)


def test_a_ratio_up_to_one_holds_for_ceilings_and_floors() -> None:
    assert (COST.ratio, COST.holds) == (0.9, True)
    assert (RATE.ratio, RATE.holds) == (1.2, False)
    assert (PLAIN.ratio, PLAIN.holds) == (None, True)
    assert Row("errors", 0.0, 0.0).holds
    assert not Row("errors", 1.0, 0.0).holds
    assert not Row("rate", 0.0, 5.0, at_least=True).holds


def test_the_json_document_has_its_stable_keys(tmp_path: Path) -> None:
    report = Report("some-name", (COST, RATE, PLAIN), machine="here")
    report.write_json(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "name": "some-name",
        "ratio": 1.2,
        "goal": 1.0,
        "holds": False,
        "rows": [
            {"what": "cost", "value": 9.0, "goal": 10.0, "unit": "s", "holds": True},
            {"what": "rate", "value": 100.0, "goal": 120.0, "unit": "MB/s", "holds": False},
            {"what": "size", "value": 5.0, "goal": None, "unit": "", "holds": True},
        ],
        "machine": "here",
    }


def test_the_table_shows_what_is_missed() -> None:
    table = Report("some-name", (COST, RATE), machine="here").table()
    assert "MISSED" in next(line for line in table.splitlines() if line.startswith("rate"))
    assert "worst ratio 1.2, goal 1: DOES NOT HOLD" in table
    assert "holds" in Report("some-name", (COST,), machine="here").table()


def test_benchmarks_are_found_by_their_modules() -> None:
    assert "convert" in names()
    assert "report" not in names()
