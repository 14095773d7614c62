"""Threads of the transfers: who ends a task goes on with what it started itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.transfer.crew import Crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew("test", 3)
    yield made
    made.stop()


def test_a_task_that_ends_hands_on_to_its_own_thread(crew: Crew) -> None:
    ran: list[int] = []
    done = threading.Event()

    def task(left: int) -> None:
        ran.append(threading.get_ident())
        if not left:
            done.set()
            return
        crew.ends()
        crew.start(lambda: task(left - 1))

    crew.start(lambda: task(50))
    assert done.wait(10)
    assert len(ran) == 51 and len(set(ran)) == 1


def test_what_else_it_starts_others_do(crew: Crew) -> None:
    together = threading.Barrier(3, timeout=10)
    ended = threading.Semaphore(0)

    def other() -> None:
        together.wait()
        ended.release()

    def task() -> None:
        crew.ends()
        for _ in range(3):
            crew.start(other)

    crew.start(task)
    for _ in range(3):
        assert ended.acquire(timeout=10)


def test_a_task_that_goes_on_is_not_taken_for_idle(crew: Crew) -> None:
    started = threading.Event()

    def task() -> None:
        crew.start(started.set)
        assert started.wait(10)

    crew.start(task)
    assert started.wait(10)


def test_nothing_is_lost_at_a_stop() -> None:
    crew = Crew("test", 2)
    ran: list[int] = []

    def task(left: int) -> None:
        ran.append(left)
        if left:
            crew.ends()
            crew.start(lambda: task(left - 1))

    for _ in range(10):
        crew.start(lambda: task(20))
    crew.stop()
    assert ran.count(20) == 10


def test_threads_begin_when_they_are_needed_and_no_more_than_may() -> None:
    before = threading.active_count()
    crew, release, done = Crew("test", 3), threading.Event(), threading.Semaphore(0)
    assert threading.active_count() == before + 1

    def task() -> None:
        release.wait(10)
        done.release()

    for count in (1, 2, 3, 3, 3):
        crew.start(task)
        assert threading.active_count() == before + count
    release.set()
    for _ in range(5):
        assert done.acquire(timeout=10)
    crew.stop()
    assert threading.active_count() == before


def test_without_another_thread_the_ones_there_are_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, done = Crew("test", 3), threading.Semaphore(0)

    def task() -> None:
        with monkeypatch.context() as context:
            context.setattr(threading.Thread, "start", _refuse)
            crew.start(done.release)

    crew.start(task)
    assert done.acquire(timeout=10)
    crew.stop()


def _refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
