"""Children of the throw-away stack: readiness, failure, and nothing left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from imgdist.demo import leftovers
from imgdist.demo.processes import Process, command, wait_until
from imgdist.errors import ImgdistError, TemporaryError


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_ready_when_the_line_is_there(tmp_path: Path) -> None:
    code = "import sys, time; print('not ready'); print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    with Process("child", _python(code), tmp_path / "log") as process:
        process.wait_for_line("ready", 20)
        assert process.running
    assert not process.running


def test_death_before_readiness_is_told_with_the_last_words(tmp_path: Path) -> None:
    code = "import sys; sys.exit('port in use')"
    with (
        Process("child", _python(code), tmp_path / "log") as process,
        pytest.raises(ImgdistError, match="child: exit 1 before it was ready: port in use"),
    ):
        process.wait_for_line("ready", 20)


def test_only_this_process_lines_count(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("ready\n")
    with Process("child", _python("import time; time.sleep(60)"), tmp_path / "log") as process:
        with pytest.raises(TemporaryError, match="child ready"):
            process.wait_for_line("ready", 0.05)
        assert process.written() == ""


def test_stop_ends_the_whole_group_and_a_deaf_process(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid); print('ready', flush=True); time.sleep(60)"
    )
    process = Process("deaf", _python(code), tmp_path / "log", stop_timeout_s=0.2)
    try:
        process.wait_for_line("ready", 20)
    finally:
        assert process.stop() == -9
    grandchild = int(process.written().split()[0])
    wait_until(lambda: _gone(grandchild), "grandchild gone", 10)
    assert process.stop() == -9


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImgdistError, match="no-such-program"):
        Process("x", ["no-such-program"], tmp_path / "log")
    with pytest.raises(ImgdistError, match="no-such-program"):
        command("no-such-program")


def test_a_failing_command_is_told_with_its_output() -> None:
    assert command("echo", "fine") == "fine\n"
    with pytest.raises(ImgdistError, match="exit 3: because"):
        command("sh", "-c", "echo because >&2; exit 3")


def test_a_family_is_killed_leaves_first(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    inner = f"import time; {mark!r}; time.sleep(60)"
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}, {mark!r}]); time.sleep(60)"
    )
    with Process("family", [*_python(code), mark], tmp_path / "log") as process:
        wait_until(lambda: len(leftovers.processes_with(mark)) == 2, "both", 20)
        assert process.pid in leftovers.processes_below(tmp_path)
        leftovers.kill_with_children(process.pid)
        assert leftovers.processes_with(mark) == []
        assert os.getpid() not in leftovers.processes_below(tmp_path)
