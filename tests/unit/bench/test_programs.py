"""Programs of a benchmark end when it does."""

from __future__ import annotations

import threading

import pytest

from bench.programs import Programs
from imgdist.errors import ImgdistError

_ENDLESS = ("cat", "/dev/zero")


def test_an_interrupt_ends_what_runs_and_nothing_begins_after_it() -> None:
    codes: list[int | None] = []
    began = threading.Event()

    def run() -> None:
        with programs.started(_ENDLESS, {}) as process:
            began.set()
            assert process.stdout is not None
            while process.stdout.read(1 << 16):
                pass
            programs.reap(process)
        codes.append(process.returncode)

    programs = Programs()
    thread = threading.Thread(target=run)
    with pytest.raises(KeyboardInterrupt), programs:
        thread.start()
        assert began.wait(10)
        raise KeyboardInterrupt
    thread.join(10)
    assert codes == [-9]
    with pytest.raises(ImgdistError, match="not started"), programs.started(_ENDLESS, {}):
        pytest.fail("it was")


def test_what_has_ended_is_told_as_it_was() -> None:
    with Programs() as programs, programs.started(("/bin/sh", "-c", "echo x; exit 3"), {}) as process:
        assert process.stdout is not None and process.stdout.read() == b"x\n"
        assert programs.reap(process).ru_utime >= 0
        programs.end()
    assert process.returncode == 3
