"""Coverage-guided fuzzing: `python tests/fuzz [--seconds N] [TARGET...]`, or `make fuzz`.

Each target runs for so many seconds in a process of its own under atheris (libFuzzer), from the corpus on. What covers
more than the corpus did is kept in it, minimised. An exception, an input that takes more than a second of CPU, or one
that needs more than 1 GiB ends a target: the input is left in tests/fuzz/out and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_corpus import inputs, keep
from fuzz_seeds import TOKENS
from fuzz_targets import TARGETS

HERE = Path(__file__).parent
OUT = HERE / "out"
_LIMITS = ("-timeout=30", "-rss_limit_mb=1024")
"""Backstops for what the target's own measure of CPU time does not end."""
_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")
_TABLE = "{:9} {:>8} {:>11} {:>7} {:>9} {:>9} {:>8} {:>9}  {}"


@dataclass(frozen=True)
class Run:
    """What became of one target: `edges` and `features` are libFuzzer's `cov` and `ft`; `found` is a failing input."""

    executions: int
    edges: int
    features: int
    found: Path | None


def main() -> int:
    """Fuzz what the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}: expected {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        print("fuzz: expected atheris, of which there is no build for this machine: docs/fuzzing.md", file=sys.stderr)
        return 3
    OUT.mkdir(exist_ok=True)
    lines = [_TABLE.format("target", "seconds", "executions", "a sec", "edges", "features", "corpus", "bytes", "")]
    failed = False
    for target in asked.targets or TARGETS:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{target}-") as place:
            run = _fuzz(target, asked.seconds, Path(place))
            kept, size = _keep(target, Path(place)) if run.found is None else (0, 0)
        outcome = "no crash, no hang" if run.found is None else f"FAILED, see {run.found}"
        speed = run.executions // max(asked.seconds, 1)
        lines.append(
            _TABLE.format(target, asked.seconds, run.executions, speed, run.edges, run.features, kept, size, outcome)
        )
        failed |= run.found is not None
    print("\n" + "\n".join(lines))
    return 1 if failed else 0


def _fuzz(target: str, seconds: int, place: Path) -> Run:
    """Run atheris from the corpus on, in `place`."""
    log, corpus, words = OUT / f"{target}.log", place / "corpus", place / "words"
    print(f"fuzz: {target} for {seconds} s; log {log}", flush=True)
    corpus.mkdir()
    for number, data in enumerate(inputs(target)):
        (corpus / str(number)).write_bytes(data)
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in TOKENS[target]))
    options = (f"-dict={words}", f"-max_total_time={seconds}", "-print_final_stats=1")
    code = _atheris(target, log, *options, str(corpus))
    said = log.read_text(errors="replace")
    found = re.search(r"Test unit written to (\S+)", said)
    if code and not found:
        raise SystemExit(f"fuzz: {target}: atheris ended with {code}; the end of {log}:\n{said[-2000:]}")
    edges, features = map(int, (_COVERAGE.findall(said) or [(0, 0)])[-1])
    executions = re.findall(r"number_of_executed_units: (\d+)", said)
    return Run(int(executions[-1]) if executions else 0, edges, features, Path(found[1]) if found else None)


def _keep(target: str, place: Path) -> tuple[int, int]:
    """Keep what of the grown corpus adds coverage; (inputs, bytes of their file)."""
    merged = place / "merged"
    merged.mkdir()
    _atheris(target, OUT / f"{target}-merge.log", "-merge=1", str(merged), str(place / "corpus"))
    kept = [path.read_bytes() for path in merged.iterdir()]
    return len(kept), keep(target, kept).stat().st_size


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _atheris(target: str, log: Path, *arguments: str) -> int:
    limits = (*_LIMITS, f"-max_len={TARGETS[target].max_bytes}", f"-artifact_prefix={OUT}/{target}-")
    command = [sys.executable, str(HERE / "atheris_target.py"), target, *limits, *arguments]
    with log.open("wb") as out:
        return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
