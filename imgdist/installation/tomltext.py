"""Keys set in a TOML text that people wrote, and taken out again to the byte, but that a last line gets an end. Pure.

What is added ends with a mark; a line that it replaces stays as a comment. The result is checked by parsing it: an
edit that does not do exactly what was wanted is refused.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from imgdist.errors import UnsupportedError

ADDED = "  # imgdist install"
REPLACED = "# replaced by imgdist install: "

_Path = tuple[str, ...]


def with_keys(text: str, wanted: Mapping[str, Any], name: str) -> str:
    """`text` with the strings, numbers, booleans and lists of strings of `wanted` (nested tables) set. Other keys,
    comments and order stay. UnsupportedError names `name` and what to write by hand where the text is too unusual."""
    before = parsed(without_keys(text), name)
    lines = without_keys(text).splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for path, keys in _tables(wanted, ()):
        lines = _set(lines, path, keys)
    changed = "".join(lines)
    try:
        done = tomllib.loads(changed) == overlaid(before, wanted)
    except tomllib.TOMLDecodeError:
        done = False
    if not done:
        asked = "; ".join(
            f"[{_header(path)}] {_line(key, value)}"
            for path, keys in _tables(wanted, ())
            for key, value in keys.items()
        )
        raise UnsupportedError(f"{name}: cannot be edited safely; set by hand: {asked}")
    return changed


def without_keys(text: str) -> str:
    """`text` as it was before `with_keys`; edits that others made since stay."""
    kept = [line for line in text.splitlines(keepends=True) if not line.rstrip("\r\n").endswith(ADDED)]
    return "".join(line.removeprefix(REPLACED) for line in kept)


def _tables(wanted: Mapping[str, Any], path: _Path) -> Iterator[tuple[_Path, Mapping[str, Any]]]:
    keys = {key: value for key, value in wanted.items() if not isinstance(value, Mapping)}
    if keys:
        yield path, keys
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*path, key))


def _set(lines: list[str], path: _Path, keys: Mapping[str, Any]) -> list[str]:
    added = [f"{_line(key, value)}{ADDED}\n" for key, value in keys.items()]
    headers = [(number, _table(line)) for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    headers = [(number, table) for number, table in headers if table is not None]
    ends = [number for number, _ in headers] + [len(lines)]
    if not path:
        return added + _replaced(lines[: ends[0]], keys) + lines[ends[0] :]
    for index, (number, table) in enumerate(headers):
        if table == path:
            end = ends[index + 1]
            return [*lines[: number + 1], *added, *_replaced(lines[number + 1 : end], keys), *lines[end:]]
    return [*lines, f"[{_header(path)}]{ADDED}\n", *added]


def _replaced(lines: list[str], keys: Mapping[str, Any]) -> list[str]:
    """The lines of one table, those that set one of `keys` (a value may go over several) made comments."""
    found: list[str] = []
    begun = ""
    for line in lines:
        begun = begun + line if begun or _key(line) in keys else ""
        found.append(REPLACED + line if begun else line)
        if begun and _parses(begun):
            begun = ""
    return found


def _key(line: str) -> str:
    return line.partition("=")[0].strip().strip("\"'") if "=" in line else ""


def _table(line: str) -> _Path | None:
    """The path that a header names, () for one of an array of tables; None if the line is no header."""
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path: _Path = ()
    while isinstance(found, dict) and found:
        (key, found), *_ = found.items()
        path = (*path, key)
    return path if isinstance(found, dict) else ()


def _parses(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def parsed(text: str, name: str) -> dict[str, Any]:
    """The document; UnsupportedError naming `name` if it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UnsupportedError(f"{name}: expected TOML: {error}") from None


def overlaid(document: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the values of `wanted` in its nested tables."""
    merged = copy.deepcopy(dict(document))
    for key, value in wanted.items():
        merged[key] = overlaid(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def _line(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value)}"


def _header(path: _Path) -> str:
    return ".".join(part if part.replace("_", "").replace("-", "").isalnum() else json.dumps(part) for part in path)
