"""The arrows between the rooms, read from the imports themselves."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_TOP = Path(__file__).parents[2]
_ROOMS = ("imgdist", "supernode", "agent", "fuse")
_MAY_IMPORT = {
    "imgdist": {"imgdist"},
    "supernode": {"supernode", "imgdist"},
    "agent": {"agent", "fuse", "imgdist"},
    "fuse": {"fuse", "imgdist"},
}


def _sources(*rooms: str) -> list[str]:
    return sorted(str(path.relative_to(_TOP)) for room in rooms for path in (_TOP / room).rglob("*.py"))


def _parsed(file: str) -> ast.Module:
    """Without a garbage collection in the middle: its finalizers upset CPython's count of the recursion before 3.11.5
    (gh-106905)."""
    gc.disable()
    try:
        return ast.parse((_TOP / file).read_text(encoding="utf-8"), file)
    finally:
        gc.enable()


def _imports(file: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import of `file`, those inside functions included."""
    package = Path(file).with_suffix("").parts[:-1]
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            yield node.lineno, origin
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("file", _sources(*_ROOMS))
def test_imports_follow_the_arrows(file: str) -> None:
    allowed = _MAY_IMPORT[Path(file).parts[0]]
    wrong = [
        f"{file}:{line}: imports {name}"
        for line, name in _imports(file)
        if (room := name.partition(".")[0]) in _ROOMS and room not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", _sources(*_ROOMS))
def test_no_import_for_type_checking_only(file: str) -> None:
    """An import that only the type checker may see is a cycle with a bandage on it."""
    tree = _parsed(file)
    names = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "TYPE_CHECKING"]
    names += [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"
    ]
    assert not names, f"{file}: TYPE_CHECKING in lines {names}"


def test_modules_form_no_cycle() -> None:
    """Module-level imports only: one inside a function is made when all modules are there."""
    modules = {_module(file): file for file in _sources(*_ROOMS)}
    edges = {name: _loaded(file, modules) - {name} for name, file in modules.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_holder_needs_the_standard_library_alone() -> None:
    """It outlives upgrades of everything else; `-S` leaves site-packages out of sight."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import agent.holder"], cwd=_TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", _sources("tests", "bench", *_ROOMS))
def test_no_drawer_for_odds_and_ends(file: str) -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not drawers & set(Path(file).with_suffix("").parts), f"{file}: name it by what lives in it"


def _module(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _loaded(file: str, modules: dict[str, str]) -> set[str]:
    """The modules of ours that loading `file` loads; a package only where it is itself what is imported from."""
    top = _parsed(file).body
    lines = {node.lineno for node in top if isinstance(node, ast.Import | ast.ImportFrom)}
    names = [(line, name) for line, name in _imports(file) if line in lines and name in modules]
    return {name for line, name in names if not any(other.startswith(name + ".") for at, other in names if at == line)}
