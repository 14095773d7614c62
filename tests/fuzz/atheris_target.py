"""One target under atheris: `python atheris_target.py TARGET [libFuzzer's arguments]`."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["imgdist", "supernode"]):
    from fuzz_targets import HANG_S, TARGETS


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    name = sys.argv.pop(1)
    run = TARGETS[name].run

    def one_input(data: bytes) -> None:
        if len(data) < 2:
            return
        began = time.thread_time()
        run(data)
        seconds = time.thread_time() - began
        if seconds > HANG_S:
            raise TimeoutError(f"an input of {len(data)} bytes took {seconds:.2f} s of CPU, expected {HANG_S} at most")

    sys.argv[0] = shlex.join([sys.executable, __file__, name])  # libFuzzer's merge has a shell run it again
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
