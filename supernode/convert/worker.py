"""The conversion worker: one layer from standard input to a part directory, in a process of its own.

Forked by `supernode.convert.forkserver`, or `python -m supernode.convert.worker PLAN`; PLAN is a JSON object: `part`,
`layer`, `threads`, `level`. On standard output one JSON object a line: `{"progress": {...}}` as it goes, then one of
`done`, `declined`, `corrupt`, `failed`. The exit code says the same. Hostile layers are parsed here: the process has
limits, and can be killed at any time, for what it leaves is trusted by nobody.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imgdist.confinement import die_with_parent, limit
from imgdist.errors import CorruptError, DeclinedError
from supernode.convert.pipeline import Options, convert
from supernode.store.writer import PackWriter

EXIT_DONE, EXIT_FAILED, EXIT_DECLINED, EXIT_CORRUPT = 0, 1, 10, 11
_REPORT_EVERY_S = 0.05
"""How stale a follower's view of the index may be: well below the time a chunk takes on any link that matters."""
_NICE = 5
"""Below the processes that serve chunks: a node that waits for a byte goes before a layer that is being made."""
_ADDRESS_SPACE = 3 << 30
_ADDRESS_SPACE_PER_THREAD = 256 << 20
"""Address space, not memory: the tar reader's own limits allow about 2 GiB, a thread reserves an
8 MiB stack and up to 128 MiB for its malloc arena."""
_FILES_MAX = 64
_libc = ctypes.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES, _MMAP_BYTES = 256 << 20, 4 << 20
"""malloc keeps freed chunk buffers instead of giving their pages back: measured 8 instead of 20-46 thousand page
faults for 300 MB, half the system time."""


def main(plan: dict[str, Any]) -> int:
    """Convert as `plan` says. Returns the exit code."""
    _confine(plan["threads"])
    sink = PackWriter(Path(plan["part"]), plan["layer"])
    done = threading.Event()
    reporter = threading.Thread(target=_report, args=(sink, done), name="report")
    reporter.start()
    outcome: dict[str, Any]
    try:
        with open(0, "rb", buffering=0) as layer:
            converted = convert(layer, sink, Options(threads=plan["threads"], level=plan["level"]))
        code, outcome = EXIT_DONE, {"done": asdict(converted) | {"pack_id": converted.pack_id.hex()}}
    except DeclinedError as error:
        code, outcome = EXIT_DECLINED, {"declined": str(error)}
    except MemoryError:
        code, outcome = EXIT_DECLINED, {"declined": "converting the layer needs more memory than is allowed"}
    except CorruptError as error:
        code, outcome = EXIT_CORRUPT, {"corrupt": str(error)}
    except OSError as error:
        code, outcome = EXIT_FAILED, {"failed": str(error)}
    finally:
        done.set()
        reporter.join()
    _say(outcome)
    return code


def _report(sink: PackWriter, done: threading.Event) -> None:
    said = 0
    while not done.wait(_REPORT_EVERY_S):
        if sink.index_bytes != said:
            said = sink.index_bytes
            _say({"progress": {"index_bytes": said, "chunks": sink.chunks}})


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _confine(threads: int) -> None:
    """Give up what a parser of strangers' bytes does not need, and do not outlive the supernode."""
    die_with_parent()
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        _libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    os.nice(_NICE)
    limit(resource.RLIMIT_AS, _ADDRESS_SPACE + threads * _ADDRESS_SPACE_PER_THREAD)
    limit(resource.RLIMIT_NOFILE, _FILES_MAX)
    limit(resource.RLIMIT_CORE, 0)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
