"""The fault kit itself: what it breaks is broken, what it checks is checked, and a seed repeats a run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults import content
from faults.edge import Hook
from faults.link import Link
from faults.readers import Readers, Report, Target
from faults.schedule import VARIABLE, Schedule

_EDGE = Path(__file__).with_name("edge.py")
_COUNT = 128


def behind_edge(directory: Path, program: str, *hooks: Hook) -> subprocess.CompletedProcess[str]:
    """Run `program` as a module behind these hooks."""
    (directory / "victim.py").write_text(program)
    argv = [sys.executable, str(_EDGE), json.dumps(hooks), "victim", "an argument"]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, env=environment)


def test_a_process_dies_at_its_third_write(tmp_path: Path) -> None:
    program = "import os, sys\nfor n in range(9): os.write(1, b'%d' % n)"
    for do, written in (("kill", "01"), ("kill after", "012")):
        ran = behind_edge(tmp_path, program, {"call": "os.write", "do": do, "at": 3})
        assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, written)


def test_calls_fail_are_cut_short_late_or_replaced(tmp_path: Path) -> None:
    program = """
import os, sys, time
def tried(call, *arguments):
    try: return call(*arguments)
    except OSError as error: return error.errno
if __name__ == "__main__":
    print([tried(os.write, 2, b"abcd") for _ in range(4)], sys.argv[1:], os.getpid())
    begun = time.monotonic(); os.getppid(); print(time.monotonic() - begun >= 0.2)
"""
    hooks: list[Hook] = [
        {"call": "os.write", "do": "ENOSPC", "at": 2, "times": 2},
        {"call": "os.write", "do": "short", "at": 4},
        {"call": "os.getppid", "do": "delay 0.2"},
        {"call": "os.getpid", "do": "return -1"},
    ]
    ran = behind_edge(tmp_path, program, *hooks)
    assert ran.stdout.splitlines() == ["[4, 28, 28, 2] ['an argument'] -1", "True"], ran.stderr


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ran = behind_edge(tmp_path, "", {"call": "os.nothing.at_all", "do": "kill"})
    assert ran.returncode == 1 and "os.nothing.at_all: no such function" in ran.stderr


@pytest.mark.parametrize("how", ["direct", "buffered"])
def test_readers_find_what_is_wrong(tmp_path: Path, how: str) -> None:
    """A flipped bit, an end that comes too early, and a file that is not there."""
    good = content.blocks(7, 0, _COUNT)
    flipped = bytearray(good)
    flipped[5 * 4096 + 77] ^= 4
    assert watched(tmp_path, good, how) == ([], [])
    errors, wrong = watched(tmp_path, bytes(flipped), how)
    assert not errors and wrong and all(first <= 5 for _, _, _, first in wrong)
    assert watched(tmp_path, good[:-4096], how)[1]
    assert {error[4] for error in watched(tmp_path, None, how)[0]} == {"ENOENT"}


def watched(directory: Path, data: bytes | None, how: str) -> tuple[list[Any], list[Any]]:
    path = directory / "file"
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)
    with Readers([Target(str(path), how, 7, _COUNT, open=_COUNT)], 4) as readers:
        time.sleep(0.7)  # some hundred reads
        report: Report = readers.stop()
    assert report.reads > 20 or data is None
    return report.errors, report.wrong


def test_a_link_delays_falsifies_falls_silent_and_cuts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Link(f"127.0.0.1:{server.getsockname()[1]}") as link:
        host, _, port = link.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as near:
            far, _ = server.accept()
            with far:
                far.settimeout(10)

                def passes(data: bytes) -> tuple[bytes, float]:
                    begun = time.monotonic()
                    far.sendall(data)
                    return near.recv(len(data), socket.MSG_WAITALL), time.monotonic() - begun

                near.sendall(b"asked")
                assert far.recv(5, socket.MSG_WAITALL) == b"asked"
                assert passes(b"right")[0] == b"right"
                link.flip_next = 1
                assert passes(b"right")[0] == b"rifht" and passes(b"right")[0] == b"right"
                link.delay_s = 0.2
                assert passes(b"late")[1] >= 0.2
                link.delay_s, link.silent = 0.0, True
                far.sendall(b"later")
                near.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    near.recv(5)
                near.settimeout(10)
                link.silent = False
                assert near.recv(5, socket.MSG_WAITALL) == b"later"
                link.cut()
                assert near.recv(1) == b"" and far.recv(1) == b""


def test_a_seed_repeats_a_schedule(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(schedule: Schedule) -> list[Any]:
        return [schedule.pause_s(0, 1), schedule.number(1000), *itertools.islice(schedule.choices("abcde"), 10)]

    first = Schedule()
    assert f"{VARIABLE}={first.seed}" in capsys.readouterr().out
    monkeypatch.setenv(VARIABLE, str(first.seed))
    assert drawn(first) == drawn(Schedule()) != drawn(Schedule(first.seed + 1))
    kinds = list(itertools.islice(first.choices("abcde"), 10))
    assert sorted(kinds[:5]) == sorted(kinds[5:]) == list("abcde")
