"""Starts side by side on one time axis, for a terminal: phases as a bar, the link's load below it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group
from rich.table import Table
from rich.text import Text

from imgdist.demo.start import Start

PULL, RUN, FILL = "pull", "start of the container", "background fill"
_STYLES = {PULL: "blue", RUN: "yellow", FILL: "bright_black"}
_LEVELS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 48


def phases(start: Start) -> list[tuple[str, float, float]]:
    """(phase, from, to) in seconds after the pull began, without gaps."""
    found = [(PULL, 0.0, start.pulled_s), (RUN, start.pulled_s, start.first_output_s)]
    if start.filled_s is not None and start.filled_s > start.first_output_s:
        found.append((FILL, start.first_output_s, start.filled_s))
    return found


def load(start: Start, columns: int, end_s: float, bits_per_s: int) -> list[float]:
    """Share of the link in use in each of `columns` equal parts of 0..end_s; 0..1."""
    edges = [end_s * column / columns for column in range(columns + 1)]
    counts = [_bytes_at(start.samples, edge) for edge in edges]
    part_bytes = bits_per_s / 8 * end_s / columns
    return [min(1.0, (after - before) / part_bytes) for before, after in pairwise(counts)]


def _bytes_at(samples: Sequence[tuple[float, int]], at_s: float) -> int:
    latest = 0
    for moment, count in samples:
        if moment > at_s:
            break
        latest = count
    return latest


def end_of(starts: Sequence[Start]) -> float:
    """The end of the common time axis, seconds."""
    return max(start.filled_s or start.first_output_s for start in starts)


def picture(starts: Sequence[Start], bits_per_s: int) -> Group:
    """What `imgdist demo` prints: two lines a start and a table of seconds and bytes."""
    end_s = end_of(starts)
    chart = Table(box=None, show_header=False, padding=(0, 1))
    for justify in ("right", "left", "right"):
        chart.add_column(justify=justify, no_wrap=True)
    for start in starts:
        chart.add_row(Text(start.what, style="bold"), _bar(start, end_s), f"{start.first_output_s:.2f} s")
        chart.add_row(Text("link", style="dim"), _sparkline(load(start, _COLUMNS, end_s, bits_per_s)), "")
    chart.add_row("", Text(f"0{f'{end_s:.1f} s':>{_COLUMNS - 1}}", style="dim"), "")
    legend = Text.assemble("   ", *(part for name in _STYLES for part in (("█", _STYLES[name]), f" {name}   ")))
    legend.append("●", "bold green")
    legend.append(" first output")
    return Group(chart, legend, Text(), _figures(starts))


def _bar(start: Start, end_s: float) -> Text:
    bar = Text()
    for name, _, to_s in phases(start):
        cells = round(_COLUMNS * to_s / end_s) - len(bar)
        bar.append(("─" if name == FILL else "█") * max(cells, 0), _STYLES[name])
        if name == RUN:
            if len(bar):
                bar.right_crop(1)
            bar.append("●", "bold green")
    return bar


def _sparkline(shares: Sequence[float]) -> Text:
    return Text("".join(_LEVELS[round(share * (len(_LEVELS) - 1))] for share in shares), style="cyan")


def _figures(starts: Sequence[Start]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("", no_wrap=True)
    for title in ("pulled", "output", "of plain", "MB by then", "MB in all", "filled"):
        table.add_column(title, justify="right", no_wrap=True)
    plain_s = starts[0].first_output_s
    for start in starts:
        table.add_row(
            start.what,
            f"{start.pulled_s:.2f} s",
            f"{start.first_output_s:.2f} s",
            f"{start.first_output_s / plain_s:.2f}",
            f"{start.bytes_before_output / 1e6:.1f}",
            f"{start.bytes_total / 1e6:.1f}",
            "-" if start.filled_s is None else f"{start.filled_s:.1f} s",
        )
    return table
