"""`python -m bench NAME [--json FILE]`: measure, print a table, exit 1 if a goal is missed. NAME `all` runs every one.

A benchmark is a module `bench/<name with underscores>.py` with `run(args) -> Report` and, for flags of its own,
`add_arguments(parser)`. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from bench.report import Report

_HERE = Path(__file__).parent
_OUT = _HERE / "out"


def names() -> list[str]:
    """Every benchmark there is."""
    modules = (path for path in _HERE.glob("*.py") if "\ndef run(" in path.read_text())
    return sorted(path.stem.replace("_", "-") for path in modules)


def run_all() -> int:
    """Run every benchmark, each in a process of its own, with its JSON in `bench/out/`. 1 if any missed a goal."""
    _OUT.mkdir(exist_ok=True)
    commands = [[sys.executable, "-m", "bench", name, "--json", str(_OUT / f"{name}.json")] for name in names()]
    return max((min(subprocess.run(command, check=False).returncode, 1) for command in commands), default=0)


def main(argv: list[str]) -> int:
    """Run what `argv` names. Returns the exit code: 0 all goals hold, 1 one is missed (2, wrong usage, exits)."""
    parser = argparse.ArgumentParser("python -m bench", description="Measure what the design promises.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    commands.add_parser("all", help="every benchmark, JSON in bench/out/")
    for name in names():
        command = commands.add_parser(name)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as one JSON document")
        if argv[:1] == [name]:
            module = importlib.import_module(f"bench.{name.replace('-', '_')}")
            command.description = module.__doc__
            getattr(module, "add_arguments", lambda _: None)(command)
    args = parser.parse_args(argv)
    if args.name == "all":
        return run_all()
    report: Report = module.run(args)
    if args.json is not None:
        report.write_json(args.json)
    print(report.table())
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
