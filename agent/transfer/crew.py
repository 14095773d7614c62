"""Threads that run tasks, begun when they are first needed; the one that became idle last gets the next.

That one still has its buffers, its zstd context and its malloc arena in the cache. Handing tasks round instead, as a
queue does, touches all of them in turn: slower for a chain of single misses, and more memory resident.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger("imgdist.agent")

Task = Callable[[], None]


class _Own(threading.local):
    """What belongs to a thread of a crew: where its tasks are put, and whether it has said that it is idle."""

    inbox: SimpleQueue[Task | None] | None = None
    is_idle = False


class Crew:
    """At most `count` threads at niceness `nice`. A task that raises is logged as the defect it is; its thread goes on.
    Each takes some 60 KiB for good, and most nodes need few."""

    def __init__(self, name: str, count: int, nice: int = 0) -> None:
        self._name, self._count, self._nice = name, count, nice
        self._lock = threading.Lock()
        self._own = _Own()
        self._idle: list[SimpleQueue[Task | None]] = []
        self._backlog: deque[Task] = deque()  # bounded by its users: a scheduler's slots, a completion per layer
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._idle.append(self._begin_thread())  # so that there is one, whatever the system refuses later

    def start(self, task: Task) -> None:
        """Run the task in a thread, as soon as there is one."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else self._another()
            if inbox is None:
                self._backlog.append(task)
                return
        inbox.put(task)

    def _another(self) -> SimpleQueue[Task | None] | None:
        """The inbox of a new thread; None if there may be no more, or the system has none."""
        if len(self._threads) == self._count or self._stopping:
            return None
        try:
            return self._begin_thread()
        except RuntimeError:
            return None

    def _begin_thread(self) -> SimpleQueue[Task | None]:
        inbox: SimpleQueue[Task | None] = SimpleQueue()
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=(inbox,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        return inbox

    def ends(self) -> None:
        """The task of this thread is as good as over: what is started from here on is its own next task, and no
        other thread is woken for it."""
        with self._lock:
            if self._own.inbox is not None and not self._own.is_idle and not self._backlog and not self._stopping:
                self._own.is_idle = True
                self._idle.append(self._own.inbox)

    def stop(self) -> None:
        """Let tasks in progress and in the backlog end, then the threads."""
        with self._lock:
            self._stopping = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, inbox: SimpleQueue[Task | None]) -> None:
        if self._nice:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        self._own.inbox = inbox
        task = inbox.get()
        while task is not None:
            try:
                task()
            except Exception:
                _log.exception("a transfer failed in a way that is a defect; it is tried again")
            task = self._next(inbox)

    def _next(self, inbox: SimpleQueue[Task | None]) -> Task | None:
        with self._lock:
            if not self._own.is_idle:
                if self._backlog:
                    return self._backlog.popleft()
                if self._stopping:
                    return None
                self._idle.append(inbox)
            self._own.is_idle = False
        return inbox.get()
