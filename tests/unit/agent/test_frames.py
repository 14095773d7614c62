"""The log of encoded bodies: what is in it is true, or it is not in it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.frames import HEADER_SIZE, Frames
from imgdist.wire.messages import BODY_MAX

BOOT, OTHER_BOOT = "b" * 36, "o" * 36
RECORD = 20


def body_of(frames: Frames, number: int) -> tuple[int, bytes] | None:
    found = frames.find(number)
    return None if found is None else (found[2], os.pread(frames.fd, found[1], found[0]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "frames"


@pytest.fixture
def frames(path: Path) -> Frames:
    made = Frames(path, BOOT)
    made.append(7, 1, b"seven")
    made.append(2, 0, b"two" * 1000)
    made.append(7, 0, b"again")
    made.append(8, 2, b"")
    return made


def check(frames: Frames, *numbers: int) -> None:
    bodies = {7: (1, b"seven"), 2: (0, b"two" * 1000)}
    for number in (0, 2, 3, 7, 8, 1 << 30):
        assert body_of(frames, number) == (bodies[number] if number in numbers else None)


def test_bodies_are_found_as_they_came_and_once(frames: Frames) -> None:
    check(frames, 2, 7)
    assert frames.size_bytes == HEADER_SIZE + 2 * RECORD + 5 + 3000


@given(
    st.dictionaries(
        st.integers(0, 5000), st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=200)), max_size=20
    )
)
def test_whatever_is_appended_is_found_again(
    tmp_path_factory: pytest.TempPathFactory, bodies: dict[int, tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("frames") / "frames"
    first = Frames(path, BOOT)
    for number, (encoding, body) in bodies.items():
        first.append(number, encoding, memoryview(body))
    second = Frames(path, BOOT)
    for frames in (first, second):
        assert {number: body_of(frames, number) for number in bodies} == bodies
    assert second.size_bytes == first.size_bytes == path.stat().st_size or not bodies


def test_the_largest_body_at_a_far_offset_keeps_its_row(path: Path) -> None:
    frames = Frames(path, BOOT)
    frames._note(3, (1 << 43) - 1, BODY_MAX, 2)
    assert frames.find(3) == ((1 << 43) - 1, BODY_MAX, 2)


def test_a_killed_agents_bodies_are_found_by_its_successor(frames: Frames, path: Path) -> None:
    successor = Frames(path, BOOT)
    check(successor, 2, 7)
    successor.append(3, 1, b"three")
    assert body_of(Frames(path, BOOT), 3) == (1, b"three")


@pytest.mark.parametrize("cut", [1, 2999, 3000, 3001, 3000 + RECORD - 1])
def test_a_torn_end_is_cut(frames: Frames, path: Path, cut: int) -> None:
    os.truncate(path, frames.size_bytes - cut)
    successor = Frames(path, BOOT)
    check(successor, 7)
    assert path.stat().st_size == successor.size_bytes == HEADER_SIZE + RECORD + 5
    successor.append(2, 0, b"two" * 1000)
    check(Frames(path, BOOT), 2, 7)


def test_a_last_record_with_other_bytes_is_cut(frames: Frames, path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"XYZ")
    check(Frames(path, BOOT), 7)


@pytest.mark.parametrize("garbage", [b"\0" * 64, b"\xff" * 64, b"x"])
def test_garbage_at_the_end_is_cut(frames: Frames, path: Path, garbage: bytes) -> None:
    with open(path, "ab") as file:
        file.write(garbage)
    successor = Frames(path, BOOT)
    check(successor, 2, 7)


def test_after_a_crash_of_the_machine_nothing_is_believed(frames: Frames, path: Path) -> None:
    successor = Frames(path, OTHER_BOOT)
    check(successor)
    assert path.stat().st_size == 0
    successor.append(2, 0, b"two" * 1000)
    check(Frames(path, OTHER_BOOT), 2)


def test_an_orderly_stop_outlives_a_boot_until_something_new_comes(frames: Frames, path: Path) -> None:
    frames.close(clean=True)
    frames.append(3, 0, b"too late")
    check(Frames(path, OTHER_BOOT), 2, 7)
    Frames(path, OTHER_BOOT).append(1, 0, b"new")
    check(Frames(path, "third" * 7 + "t"))


def test_after_an_orderly_stop_the_records_are_not_read(
    frames: Frames, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames.close(clean=True)
    with monkeypatch.context() as patch:
        patch.setattr(Frames, "_scan", lambda self, end: pytest.fail("read the records"))
        successor = Frames(path, BOOT)
    check(successor, 2, 7)
    assert successor.size_bytes == frames.size_bytes
    successor.append(3, 1, b"three")
    next_one = Frames(path, BOOT)
    assert body_of(next_one, 3) == (1, b"three")
    assert next_one.size_bytes == path.stat().st_size == frames.size_bytes + RECORD + 5


@pytest.mark.parametrize("cut", [1, 8, 64, 100])
def test_damaged_rows_are_made_anew_from_the_records(frames: Frames, path: Path, cut: int) -> None:
    frames.close(clean=True)
    os.truncate(path, path.stat().st_size - cut)
    found = Frames(path, OTHER_BOOT)
    check(found, *([2, 7] if cut < 100 else [7]))
    assert found.size_bytes == path.stat().st_size


def test_a_stop_in_a_hurry_does_not(frames: Frames, path: Path) -> None:
    frames.close(clean=False)
    check(Frames(path, OTHER_BOOT))


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 5000, b"NOTFRAME" + bytes(6000)])
def test_what_is_no_log_is_emptied(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    frames = Frames(path, BOOT)
    check(frames)
    assert path.stat().st_size == 0


def test_a_full_disk_ends_the_keeping_and_nothing_else(
    frames: Frames, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = frames.size_bytes
    real = os.pwritev

    def half(fd: int, parts: list[bytes], offset: int) -> int:
        return real(fd, [b"".join(parts)[:100]], offset)

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", half)
    monkeypatch.setattr(os, "pwrite", full)
    frames.append(3, 1, bytes(1000))
    monkeypatch.undo()
    check(frames, 2, 7)
    frames.append(3, 1, b"three")
    check(frames, 2, 7)
    assert frames.size_bytes == path.stat().st_size == size


def test_short_writes_are_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, offset: real(fd, [b"".join(parts)[:7]], offset))
    frames = Frames(path, BOOT)
    frames.append(2, 0, b"two" * 1000)
    check(Frames(path, BOOT), 2)


def test_a_failed_sync_leaves_nothing_to_believe(frames: Frames, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    frames.close(clean=True)
    monkeypatch.undo()
    check(Frames(path, BOOT))


def test_no_descriptor_is_left(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    Frames(path, BOOT).append(1, 0, b"x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_append_at_once(path: Path) -> None:
    frames = Frames(path, BOOT)

    def work(first: int) -> None:
        for number in range(first, 400, 2):
            frames.append(number, 1, number.to_bytes(2, "little") * 500)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in (frames, Frames(path, BOOT)):
        assert [body_of(log, n) for n in range(400)] == [(1, n.to_bytes(2, "little") * 500) for n in range(400)]
    assert path.stat().st_size == HEADER_SIZE + 400 * (RECORD + 1000)
