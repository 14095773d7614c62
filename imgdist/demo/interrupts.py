"""Ctrl-C and SIGTERM: the first one ends the work, later ones do not cut the clean-up short."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises KeyboardInterrupt; each later one only says that we are at it."""

    def patience(number: int, frame: FrameType | None) -> None:
        print("imgdist: cleaning up, please wait", file=sys.stderr)

    def first(number: int, frame: FrameType | None) -> None:
        for name in _SIGNALS:
            signal.signal(name, patience)
        raise KeyboardInterrupt

    before = {name: signal.signal(name, first) for name in _SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Signals that come inside are delivered at its end: for clean-up on the ordinary way out.

    By handlers, not by a mask: the kernel gives what this thread blocks to another one (gRPC has some), and CPython
    lets it interrupt the main thread all the same.
    """
    came: list[int] = []
    before = {name: signal.signal(name, lambda number, frame: came.append(number)) for name in _SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
