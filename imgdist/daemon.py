"""What every daemon does around its work: log lines on stderr, and the word that it serves."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from contextlib import suppress

_LEVELS = {"WARNING": "warning", "INFO": "info", "ERROR": "error", "DEBUG": "debug", "CRITICAL": "critical"}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _moment(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record),
            "level": _LEVELS.get(record.levelname, record.levelname),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _moment(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def configure_logging(log_format: str) -> None:
    """Log to stderr, one line each: "text" for people, "json" for collectors. INFO and above; times are UTC."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def end_with_threads() -> None:
    """From now on a thread that ends by a fault (a defect, or no memory is left) ends the process with exit code 1: who
    waits for that thread would wait for ever, and whoever started this process starts it anew."""
    threading.excepthook = _end_with_thread


def _end_with_thread(fault: threading.ExceptHookArgs) -> None:
    name = fault.thread.name if fault.thread is not None else "?"
    try:
        error = fault.exc_value or fault.exc_type()
        logging.getLogger("imgdist.daemon").critical("thread %s cannot go on: this process ends", name, exc_info=error)
    finally:
        os._exit(1)


def forbid_core_dumps() -> None:
    """No core file of this process and its children: what clients showed registries is in their memory. 1 and not 0:
    dumps that are piped to a program (core(5)) take no notice of the limit but for that value."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def allow_open_files() -> None:
    """As many open files as this process and its children may have: each neighbour, each agent of a supernode has a
    connection, each layer of a node two files, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # where "unlimited" is above what the kernel takes, the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def announce_ready() -> None:
    """Say on stderr and to systemd (sd_notify(3), if it asks) that this daemon serves."""
    notify("READY=1")
    print("ready", file=sys.stderr, flush=True)


def notify(state: str) -> None:
    """Send a state to the service manager; nothing if there is none. A broken one is not worth failing for."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.connect("\0" + path[1:] if path.startswith("@") else path)
            manager.send(state.encode())
        except OSError as error:
            logging.getLogger("imgdist.daemon").warning("cannot notify the service manager at %s: %s", path, error)
