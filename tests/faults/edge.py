"""Runs a module of ours with faults at its edge: `python edge.py HOOKS_JSON MODULE ARGUMENTS...`.

Each hook wraps one function, named as "os.pwrite" or "package.module.Class.method", from the `at`-th call on (1: the
first) for `times` calls, or by `chance`:

    {"call": "os.writev", "do": "kill", "at": 17}                the process dies (SIGKILL) instead of the call
    {"call": "os.writev", "do": "kill after", "at": 17}          .. right after it
    {"call": "os.pwrite", "do": "ENOSPC", "at": 5, "times": 3}   the call fails with that errno
    {"call": "os.pwrite", "do": "short"}                         half of the bytes (of a read or write)
    {"call": "os.fdatasync", "do": "delay 0.5"}                  seconds before the call
    {"call": "fuse.device.KernelReplies.ask_again", "do": "return false"}   a JSON value instead of the call

`at`: "3-40" draws the number at each start of the process. Stands alone: what it wraps must not have been imported.
"""

from __future__ import annotations

import errno
import functools
import importlib
import itertools
import json
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Hook = dict[str, Any]


def install(hook: Hook) -> None:
    """Wrap the function that `hook` names."""
    owner, name = _resolve(hook["call"])
    setattr(owner, name, _wrapped(getattr(owner, name), hook))


def _resolve(path: str) -> tuple[Any, str]:
    *parts, name = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            owner = getattr(owner, part, None)
        if hasattr(owner, name):
            return owner, name
    raise SystemExit(f"{path}: no such function")


def _wrapped(call: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    first = _first(hook.get("at", 1))
    last = first + hook.get("times", 1) - 1 if "chance" not in hook else sys.maxsize
    counter, chance = itertools.count(1), random.Random(os.getpid())

    @functools.wraps(call)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        due = first <= next(counter) <= last and chance.random() < hook.get("chance", 1.0)
        return _faulty(call, hook["do"], arguments, named) if due else call(*arguments, **named)

    return wrapper


def _first(at: int | str) -> int:
    if isinstance(at, int):
        return at
    least, _, most = at.partition("-")
    return random.SystemRandom().randint(int(least), int(most))


def _faulty(call: Callable[..., Any], do: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do in errno.__dict__:
        number = getattr(errno, do)
        raise OSError(number, os.strerror(number))
    if do.startswith("return "):
        return json.loads(do.removeprefix("return "))
    if do.startswith("delay "):
        time.sleep(float(do.removeprefix("delay ")))
    if do == "short":
        arguments = (arguments[0], _half(arguments[1]), *arguments[2:])
    result = call(*arguments, **named)
    if do == "kill after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def _half(data: Any) -> Any:
    """Half of a buffer, or of a list's only buffer, or of a length."""
    if isinstance(data, int):
        return max(1, data // 2)
    if isinstance(data, list):
        return [_half(data[0])]
    return memoryview(data)[: max(1, len(data) // 2)]


def main() -> None:
    """Install the hooks, then become the module."""
    for hook in json.loads(sys.argv[1]):
        install(hook)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
