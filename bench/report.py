"""What a benchmark found, beside the goals it is held to: a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `goal` None: shown for its own sake, held to nothing.

    `at_least`: the goal is a floor (a rate) rather than a ceiling (a cost).
    """

    what: str
    value: float
    goal: float | None = None
    unit: str = ""
    at_least: bool = False

    @property
    def ratio(self) -> float | None:
        """value/goal, turned over for a floor, so that up to 1 always means: holds."""
        if self.goal is None:
            return None
        above, below = (self.goal, self.value) if self.at_least else (self.value, self.goal)
        if below == 0:
            return 1.0 if above == 0 else float("inf")
        return above / below

    @property
    def holds(self) -> bool:
        """Whether the figure meets its goal."""
        return self.ratio is None or self.ratio <= 1


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of one benchmark; `note` says what a reader must know to judge them."""

    name: str
    rows: tuple[Row, ...]
    note: str = ""
    machine: str = field(default_factory=lambda: describe_machine())

    @property
    def ratio(self) -> float:
        """The worst value/goal of all rows."""
        return max((row.ratio for row in self.rows if row.ratio is not None), default=0.0)

    @property
    def goal(self) -> float:
        """What `ratio` must not exceed."""
        return 1.0

    @property
    def holds(self) -> bool:
        """Whether every row holds."""
        return all(row.holds for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` writes."""
        rows = [
            {"what": row.what, "value": _finite(row.value), "goal": row.goal, "unit": row.unit, "holds": row.holds}
            for row in self.rows
        ]
        return {
            "name": self.name,
            "ratio": _finite(self.ratio),
            "goal": self.goal,
            "holds": self.holds,
            "rows": rows,
            "machine": self.machine,
        }

    def write_json(self, path: Path) -> None:
        """Write the JSON document."""
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")

    def table(self) -> str:
        """The table for people, with the ratio of each row to its goal."""
        head = ("", "value", "goal", "unit", "ratio", "")
        body = [_cells(row) for row in self.rows]
        widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
        lines = [f"{self.name}  ({self.machine})", ""]
        for line in (head, *body):
            cells = [line[0].ljust(widths[0])] + [
                cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        lines += ["", f"worst ratio {self.ratio:.3g}, goal {self.goal:g}: {verdict}"]
        return "\n".join(lines + ([self.note] if self.note else []))


def _cells(row: Row) -> tuple[str, str, str, str, str, str]:
    if row.goal is None or row.ratio is None:
        return row.what, f"{row.value:,.4g}", "", row.unit, "", ""
    goal = f"{'>=' if row.at_least else '<='} {row.goal:,.4g}"
    return row.what, f"{row.value:,.4g}", goal, row.unit, f"{row.ratio:.2f}", "ok" if row.holds else "MISSED"


def _finite(value: float) -> float | None:
    return value if value not in (float("inf"), float("-inf")) else None


def describe_machine() -> str:
    """Kernel, cores, processor, its SHA extensions and the load: what speed depends on."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in cpu.splitlines() if line.startswith("model name")), "unknown CPU")
    sha = "SHA-NI" if has_sha_ni() else "no SHA-NI"
    return (
        f"Linux {platform.release()}, {os.cpu_count()} cores, {model}, {sha}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def has_sha_ni() -> bool:
    """Whether the processor computes sha256 in hardware (1.2 instead of 0.36 GB/s)."""
    return " sha_ni" in Path("/proc/cpuinfo").read_text() or " sha2" in Path("/proc/cpuinfo").read_text()
