"""The view process: `python -m fuse.main [--deadline SECONDS] [--log-format text|json]`, started by the holder.

Two device threads serve the kernel, others wait for the disk, and this thread serves the agent. Killed at any time, it
loses nothing: session, slots and parked requests are the holder's.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading

from fuse import deadline
from fuse.device import Device, KernelReplies
from fuse.outbox import Outbox
from fuse.port import Port
from fuse.slots import Slots, check_slots
from fuse.view import View
from imgdist import daemon, holder_client

log = logging.getLogger("imgdist.view")

DEADLINE_S = 60.0
"""Below the kernel's hung-task warning (120 s)."""
SESSION_LOST = 75
"""Exit status (EX_TEMPFAIL, sysexits.h) that tells the holder: the mount is gone, make a new session."""
_THREADS = 2  # measured: eight answer cached hits no faster (fuse/disk.py has the figures), and take 6 MiB more
_SWITCH_INTERVAL_S = 0.0005  # the default 5 ms is what a hit would wait for the other device thread at worst


def main() -> int:
    """Serve until the holder is gone."""
    deadline_s, log_format = options(sys.argv[1:])
    daemon.configure_logging(log_format)
    daemon.end_with_threads()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    bounded, promise = deadline.in_words(deadline_s)
    log.log(logging.INFO if bounded else logging.WARNING, "%s", promise)
    holder = holder_client.connect()
    check_slots(holder.fds["slots"])
    if not holder.stand_by():
        return 0
    slots = Slots(holder.fds["slots"])
    fd = holder.fds["fuse"]
    replies, outbox = KernelReplies(fd), Outbox()
    view = View(replies, outbox, slots, slots.parked())
    device = Device(fd, slots, replies, view)
    if slots.generation:
        _recover(device, replies, view)
    for index in range(_THREADS):
        threading.Thread(target=_serve, args=(device, index), name=f"device-{index}", daemon=True).start()
    listener = socket.socket(fileno=holder.fds["socket:view"])
    holder.ready()
    try:
        Port(listener, outbox, view, deadline_s, holder.fileno(), holder.settled).run()
    except Exception:
        log.exception("the agent's thread cannot go on; the next view answers what is left")
        os._exit(1)
    os._exit(0)  # the device threads are inside read(); there is nothing that an orderly end could save


def options(arguments: list[str]) -> tuple[float, str]:
    """Seconds a read may wait (0: for ever) and the format of log lines; SystemExit for anything but these options.

    Not by argparse, which is a MiB of the fifteen that this process has.
    """
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    known = {"--deadline": str(DEADLINE_S), "--log-format": "text"}
    if len(arguments) % 2 or not given.keys() <= known.keys():
        raise SystemExit(f"usage: python -m fuse.main [--deadline SECONDS] [--log-format text|json], not {arguments}")
    known |= given
    return float(known["--deadline"]), known["--log-format"]


def _recover(device: Device, replies: KernelReplies, view: View) -> None:
    parked = len(view.parking)
    adopted = device.adopt()
    resent = replies.ask_again()
    log.info("took over %d parked and %d unanswered requests, resend %s", parked, adopted, "asked" if resent else "no")


def _serve(device: Device, index: int) -> None:
    try:
        device.serve(index)
    except OSError:
        log.exception("device thread %d cannot go on; the next view answers what is left", index)
        os._exit(1)
    log.error("the FUSE session is over (unmounted or aborted)")
    os._exit(SESSION_LOST)


if __name__ == "__main__":
    sys.exit(main())
