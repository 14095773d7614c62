"""The conversion worker: one layer from standard input to a part directory, in a process of its own.

Forked by `supernode.convert.forkserver`, or `python -m supernode.convert.worker PLAN`; PLAN is a JSON object: `part`,
`layer`, `threads`, `level`, `limits` (imgdist.limits). On standard output one JSON object a line: `{"progress": {...}}`
as it goes, then one of `done`, `declined`, `corrupt`, `failed`. The exit code says the same. Hostile layers are parsed
here: the process has limits of memory, CPU time and files, and can be killed at any time, for what it leaves is trusted
by nobody.
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
from imgdist.limits import Limits
from supernode.convert.decompress import LayerSource
from supernode.convert.pipeline import Options, convert
from supernode.store.writer import PackWriter

EXIT_DONE, EXIT_FAILED, EXIT_DECLINED, EXIT_CORRUPT = 0, 1, 10, 11
_REPORT_EVERY_S = 0.05
"""How stale a follower's view of the index may be: well below the time a chunk takes on any link that matters."""
_NICE = 5
"""Below the processes that serve chunks: a node that waits for a byte goes before a layer that is being made."""
_MEMORY_PER_THREAD = 16 << 20
"""For each encoding thread beyond two: its zstd context, its malloc arena, six chunks raw and encoded."""
_STACK_BYTES = 1 << 20
"""Of a thread: all of it counts as memory, touched or not. libzstd and BLAKE3 take some 100 KiB."""
_ADDRESS_SPACE = 1 << 30
_ADDRESS_SPACE_PER_THREAD = 256 << 20
"""Address space beside the memory: libraries, and up to 128 MiB that malloc reserves for each thread's arena."""
_LAST_WORDS_BYTES = 16 << 20
"""Memory that is kept back, to say that there was not enough."""
_FILES_MAX = 64
_libc = ctypes.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES, _MMAP_BYTES = 256 << 20, 4 << 20
"""malloc keeps freed chunk buffers instead of giving their pages back: measured 8 instead of 20-46 thousand page
faults for 300 MB, half the system time."""


def main(plan: dict[str, Any]) -> int:
    """Convert as `plan` says. Returns the exit code."""
    limits = Limits(**plan["limits"])
    _confine(plan["threads"], limits)
    sink = PackWriter(Path(plan["part"]), plan["layer"])
    done = threading.Event()
    with open(0, "rb", buffering=0) as layer:
        source = LayerSource(layer)
        reporter = threading.Thread(target=_report, args=(sink, source, plan["level"], limits, done), name="report")
        reporter.start()
        try:
            options = Options(threads=plan["threads"], level=plan["level"], limits=limits)
            converted = convert(source, sink, options)
            code, outcome = EXIT_DONE, {"done": asdict(converted) | {"pack_id": converted.pack_id.hex()}}
        except (DeclinedError, CorruptError, MemoryError, OSError) as error:
            code, outcome = _verdict(error)
        finally:
            done.set()
            reporter.join()
    _say(outcome)
    return code


def _verdict(error: BaseException) -> tuple[int, dict[str, Any]]:
    """What to end with because of `error`."""
    match error:
        case DeclinedError():
            return EXIT_DECLINED, {"declined": str(error)}
        case MemoryError():
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
            return EXIT_DECLINED, {"declined": f"converting the layer takes more than {soft >> 20} MiB of memory"}
        case CorruptError():
            return EXIT_CORRUPT, {"corrupt": str(error)}
    return EXIT_FAILED, {"failed": str(error) or repr(error)}


def _end_with_thread(args: threading.ExceptHookArgs) -> None:
    """A thread that dies would have the others wait for it."""
    code, outcome = _verdict(args.exc_value or RuntimeError(f"a thread of the worker ended: {args.exc_type.__name__}"))
    _say(outcome)
    os._exit(code)


def _report(sink: PackWriter, source: LayerSource, level: int, limits: Limits, done: threading.Event) -> None:
    """Tell followers how far it is, and allow the CPU time that the layer is worth so far."""
    said = allowed = 0
    while not done.wait(_REPORT_EVERY_S):
        if sink.index_bytes != said:
            said = sink.index_bytes
            _say({"progress": {"index_bytes": said, "chunks": sink.chunks}})
        if allowed < cpu_allowed_s(source.received, level, limits):
            allowed = cpu_allowed_s(source.received, level, limits)
            _limit_cpu(allowed)


def cpu_allowed_s(received_bytes: int, level: int, limits: Limits) -> int:
    """CPU-seconds that a conversion may take by the time that it has received so much.

    A second a MiB is three times what level 1 takes of a layer at the highest expansion allowed; other levels take at
    most so many times that (measured: level 19 takes 15 times as long as level 1).
    """
    return limits.cpu_s + (received_bytes * level >> 20)


def _limit_cpu(seconds: int) -> None:
    """The kernel ends the process by SIGXCPU when it has taken more, whatever it is at."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _confine(threads: int, limits: Limits) -> None:
    """Give up what a parser of strangers' bytes does not need, and do not outlive the supernode."""
    die_with_parent()
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        _libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    os.nice(_NICE)
    threading.stack_size(_STACK_BYTES)
    threading.excepthook = _end_with_thread
    memory = limits.memory_bytes + max(0, threads - 2) * _MEMORY_PER_THREAD
    limit(resource.RLIMIT_AS, memory + _ADDRESS_SPACE + threads * _ADDRESS_SPACE_PER_THREAD)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory + _LAST_WORDS_BYTES))
    limit(resource.RLIMIT_NOFILE, _FILES_MAX)
    limit(resource.RLIMIT_CORE, 0)
    _limit_cpu(limits.cpu_s)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
