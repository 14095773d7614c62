"""In the process that proves a pack: run behind everything else, in bounded memory and CPU time, and say how it goes.

On standard output one JSON object a line: `{"done": bytes, "total": bytes}` as it goes, then a `Verdict`.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

import msgspec
import zstandard

from imgdist.confinement import die_with_parent, limit, run_when_idle
from imgdist.errors import CorruptError, ImgdistError
from imgdist.proving.proof import FalsePackError, PartialError
from imgdist.proving.verdict import Verdict

MEMORY_BYTES = 2 << 30
"""Address space: the tree of a layer is held in memory while it is converted. Measured: 28 MiB resident, 83 of a layer
of 300,000 files."""
CPU_S = 4 * 3600
"""CPU-seconds: some four times what the largest layer takes that the default limits allow. A pack that was made for it
could take years, and no other would be proved meanwhile."""
_SAY_EVERY_S = 0.1
_NICE = 10
"""Of a proof that somebody waits for: a quarter of what others get of a busy processor (a guess)."""


class Progress:
    """Says how far it is, ten times a second at most. `expect` the bytes that are to be looked at, about."""

    def __init__(self) -> None:
        self.expect = 0
        self._done = 0
        self._say_at = 0.0

    def looked(self, count: int) -> None:
        """At so many more bytes."""
        self._done += count
        now = time.monotonic()
        if now >= self._say_at:
            self._say_at = now + _SAY_EVERY_S
            _say({"done": self._done, "total": max(self.expect, self._done)})


def report(when: str, work: Callable[[Progress], None]) -> int:
    """Do `work`, a proof, and print how it goes and what it comes to. Returns the exit code, 0. `when` is a
    imgdist.proving.process.When."""
    die_with_parent()
    if when == "idle":
        run_when_idle()
    else:
        os.nice(_NICE)
    limit(resource.RLIMIT_AS, MEMORY_BYTES)
    limit(resource.RLIMIT_CPU, CPU_S)
    limit(resource.RLIMIT_CORE, 0)
    _say(verdict_of(lambda: work(Progress())))
    return 0


def verdict_of(work: Callable[[], None]) -> Verdict:
    """What `work`, a proof, comes to."""
    try:
        work()
    except FalsePackError as error:
        return Verdict("false", str(error))
    except CorruptError as error:
        return Verdict("damaged", str(error))
    except zstandard.ZstdError as error:
        return Verdict("damaged", f"tar-split stream does not decode: {error}")
    except PartialError as error:
        return Verdict("partial", str(error))
    except MemoryError:
        return Verdict("unproven", f"it takes more than {MEMORY_BYTES} bytes of memory")
    except (ImgdistError, OSError) as error:
        return Verdict("unproven", str(error))
    return Verdict("proven")


def _say(message: object) -> None:
    os.write(1, msgspec.json.encode(message) + b"\n")
