"""The largest of what is read again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Peak:
    """The largest value that `read` gave while the context is open, called each `every_s` seconds; 0 before."""

    def __init__(self, read: Callable[[], float], every_s: float) -> None:
        self._read = read
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak", daemon=True)
        self.value = 0.0

    def _sample(self) -> None:
        while not self._ended.wait(self._every_s):
            self.value = max(self.value, self._read())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
