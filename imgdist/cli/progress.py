"""What a terminal shows: bars on stderr, tables on stdout. Without a terminal bars are silent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text


class Bars:
    """One bar a layer, shown only where stderr is a terminal."""

    def __init__(self, title: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._title = title
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        if self._progress.console.is_terminal:
            self._progress.console.print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """Put `name`'s bar at `done_bytes` of `total_bytes`."""
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = self._progress.add_task(short(name), total=total_bytes)
        self._progress.update(task, completed=done_bytes, total=total_bytes)


def short(name: str) -> str:
    """A digest as people compare them: its first twelve hex digits. Other text as it is."""
    algorithm, separator, digits = name.partition(":")
    return digits[:12] if separator and algorithm == "sha256" else name


def table(title: str, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
    """A table of `rows` on stdout; columns that count bytes are shown in the units people read."""
    shown = Table(title=title, title_justify="left")
    for column in columns:
        shown.add_column(column.removesuffix("_bytes"), justify="right" if column.endswith("_bytes") else "left")
    for row in rows:
        # Text: an address such as [fe80::1]:7651 is no markup.
        shown.add_row(*(Text(_cell(column, row.get(column))) for column in columns))
    Console().print(shown)


def properties(document: Mapping[str, Any]) -> None:
    """A document's top-level entries, one a line."""
    shown = Table(show_header=False, box=None)
    for key, value in document.items():
        shown.add_row(key, Text(_cell(key, value)))
    Console().print(shown)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        unit = "_bytes" if column == "sources" else ""
        return ", ".join(f"{key} {_cell(unit, item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "-"
    if column.endswith("_bytes") and isinstance(value, int):
        return f"{value / 1e6:.1f} MB" if value >= 50_000 else f"{value / 1e3:.1f} kB"
    return short(str(value))
