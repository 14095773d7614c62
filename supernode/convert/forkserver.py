"""The process that conversion workers are forked from: single-threaded, with everything imported that they need.

A worker started as a process of its own costs 120 ms of imports, longer than most layers take to convert; a fork of
this one costs some milliseconds and is as much apart: own memory, own limits, can be killed at any time.

Standard input is a SOCK_SEQPACKET socket. Each packet is a plan (see `supernode.convert.worker`) with two sockets as
SCM_RIGHTS: where the layer comes from, and where the worker's lines go. When the worker has ended, one more line
follows on the latter, `{"ended": status}` as `os.waitstatus_to_exitcode` tells it, and it is closed. Whoever shuts
the other end of it down for writing has the worker killed. The end of standard input ends this process, and its end
kills the workers: a layer that kills one takes no other with it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from imgdist.confinement import die_with_parent, limit
from supernode.convert import worker

_PLAN_MAX = 64 * 1024
_FILES_MAX = 256
"""Descriptors: two for each worker, of which there are at most 64; few enough to close one by one in each worker."""
_OTHERS = 3
"""The first descriptor that a worker has no use for. Another worker's report socket, kept open in this one, would
keep the end of that one from being seen."""


def main() -> int:
    """Fork a worker for each plan until standard input ends."""
    die_with_parent()
    limit(resource.RLIMIT_NOFILE, _FILES_MAX)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supernode decides what ends
    gc.collect()
    gc.freeze()  # else a worker's first collection copies every page of what was imported
    with socket.socket(fileno=0) as control, selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    happened: Callable[[], None] = key.data
                    happened()
                    continue
                plan, descriptors, _, _ = socket.recv_fds(control, _PLAN_MAX, 2)
                if not plan:
                    return 0
                layer, report = descriptors
                _start(json.loads(plan), layer, report, selector)


def _start(plan: dict[str, Any], layer: int, report: int, selector: selectors.BaseSelector) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        os.close(layer)
        _say_last(report, {"failed": f"cannot start a conversion worker: {error.strerror}"})
        return
    if not pid:
        _become_worker(plan, layer, report)
    os.close(layer)
    _Child(pid, report, selector)


def _become_worker(plan: dict[str, Any], layer: int, report: int) -> NoReturn:
    code = worker.EXIT_FAILED
    try:
        os.dup2(layer, 0)
        os.dup2(report, 1)
        os.closerange(_OTHERS, _FILES_MAX)
        code = worker.main(plan)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)  # nothing of the server's may run on here: its objects hold numbers of closed descriptors


class _Child:
    """A running worker: killed when its report socket is shut down, reaped and told of when it ends."""

    def __init__(self, pid: int, report: int, selector: selectors.BaseSelector) -> None:
        self._pid = pid
        self._report = report
        self._selector = selector
        self._reaped = False
        self._ended = os.pidfd_open(pid)
        selector.register(report, selectors.EVENT_READ, self._kill)
        selector.register(self._ended, selectors.EVENT_READ, self._reap)

    def _kill(self) -> None:
        if self._reaped:  # by an event of the same round
            return
        self._selector.unregister(self._report)
        os.kill(self._pid, signal.SIGKILL)

    def _reap(self) -> None:
        _, status = os.waitpid(self._pid, 0)
        self._reaped = True
        if self._report in self._selector.get_map():
            self._selector.unregister(self._report)
        self._selector.unregister(self._ended)
        os.close(self._ended)
        _say_last(self._report, {"ended": os.waitstatus_to_exitcode(status)})


def _say_last(report: int, message: dict[str, Any]) -> None:
    with socket.socket(fileno=report) as out, suppress(OSError):  # nobody reads it any more
        out.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)


if __name__ == "__main__":
    sys.exit(main())
