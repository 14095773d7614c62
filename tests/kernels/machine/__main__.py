"""`python tests/kernels/machine [VERSION...]`: the suite of tests/kernels on Debian's kernels.

Prints what each kernel was found to do as a table; exit code 1 if a test failed somewhere or a guest fell silent.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import guest
import packages
import root

from imgdist.demo.cache import cache_directory

_DEFAULT = ("6.1", "6.12")
_TIMEOUT_S = 900.0
_KILLS = 30
_JOBS = 2  # on two cores: most tests keep one of a guest's two processors busy
_TAIL_LINES = 60


def main() -> int:
    """Run; see the module."""
    parser = argparse.ArgumentParser(prog="scripts/kernels", description=__doc__)
    parser.add_argument("versions", nargs="*", default=_DEFAULT, help=f"of {', '.join(packages.VERSIONS)}")
    parser.add_argument("--only", action="append", default=[], metavar="TEST", help="file or test, as pytest takes it")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, metavar="SECONDS", help="of one kernel")
    parser.add_argument("--kills", type=int, default=_KILLS, metavar="N", help="of the view, and of the agent")
    parser.add_argument("--jobs", type=int, default=_JOBS, metavar="N", help="virtual machines at a time")
    signal.signal(signal.SIGTERM, _stop)
    options = parser.parse_args()
    cache = cache_directory() / "kernels"
    try:
        kernels = [packages.kernel(version, cache) for version in options.versions]
    except packages.PackageError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="kernels-") as name:
        script = guest.run_script(options.only or ["tests/kernels"], options.kills, options.timeout)
        image = Path(name) / "root.erofs"
        root.build(image, script)
        with ThreadPoolExecutor(options.jobs) as pool:
            running = {kernel: pool.submit(_run, kernel, image, cache, options.timeout) for kernel in kernels}
            try:
                outcomes = {kernel: run.result() for kernel, run in running.items()}
            finally:
                pool.shutdown(cancel_futures=True)
    print(_table({kernel.release: outcome.report for kernel, outcome in outcomes.items()}))
    return 0 if all(outcome.code == 0 for outcome in outcomes.values()) else 1


def _stop(*_: object) -> None:
    guest.kill_all()
    sys.exit("kernels: told to stop")


def _run(kernel: packages.Kernel, image: Path, cache: Path, timeout_s: float) -> guest.Outcome:
    console = cache / kernel.version / "console"
    begun = time.monotonic()
    outcome = guest.run(kernel, image, console, timeout_s)
    print(f"kernels: {kernel.release}: {outcome.ended}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if outcome.code != 0:
        print(*console.read_text(errors="replace").splitlines()[-_TAIL_LINES:], sep="\n", file=sys.stderr)
        print(f"kernels: all that the guest said: {console}", file=sys.stderr)
    return outcome


def _table(reports: Mapping[str, Mapping[str, str]]) -> str:
    """What was found, a row for each thing and a column for each kernel, in Markdown."""
    rows = list(dict.fromkeys(row for report in reports.values() for row in report))
    head = ["| |" + "".join(f" {release} |" for release in reports), "|---" * (len(reports) + 1) + "|"]
    cells = ["".join(f" {report.get(row, '-')} |" for report in reports.values()) for row in rows]
    return "\n".join([*head, *(f"| {row} |{line}" for row, line in zip(rows, cells, strict=True))])


if __name__ == "__main__":
    sys.exit(main())
