"""The process that serves a supernode's chunk bodies, apart from its control port: `python -m supernode.chunkserver`.

Prints JSON lines: once it listens `{"address": "http://127.0.0.1:41231"}`, so that port 0 can be asked for; then, every
second in which some were sent, the bytes of chunks sent since it started, `{"sent": {"demand": 4096, "trace": 0,
"fill": 0}}`. SIGTERM and SIGINT end it after the requests in progress.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imgdist import daemon
from imgdist.errors import ImgdistError
from imgdist.wire.address import Address
from imgdist.wire.clusterkey import ClusterKey, open_key
from imgdist.wire.messages import Priority
from imgdist.wire.server import ChunkServer
from imgdist.wire.slots import BUSY_AFTER_S
from supernode.seeding import Seeding
from supernode.store import LocalStore

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
REPORT_S = 1.0


class Uploads:
    """Counts the bytes sent, by priority. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = {priority.value: 0 for priority in Priority}
        self._reported = self._sent.copy()

    def add(self, priority: Priority, size_bytes: int) -> None:
        """So many more were sent."""
        with self._lock:
            self._sent[priority.value] += size_bytes

    def report(self) -> None:
        """Print the totals if they changed."""
        with self._lock:
            sent = self._sent.copy()
        if sent != self._reported:
            self._reported = sent
            print(json.dumps({"sent": sent}), flush=True)


def serve(root: Path, address: Address, listens: int | None = None, key: ClusterKey | None = None) -> None:
    """Serve the packs under `root` until SIGTERM or SIGINT. Raises ImgdistError if it cannot listen. `listens`: the
    descriptor of a socket that does so already, whose file is not ours to remove."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # before any thread: all inherit it, and sigtimedwait gets them
    listener = address.listen() if listens is None else socket.socket(fileno=listens)
    uploads = Uploads()
    store = LocalStore(root)
    server = ChunkServer(store, [listener], uploads.add, busy_after_s=BUSY_AFTER_S, seeder=Seeding(), key=key)
    server.start()
    print(json.dumps({"address": _bound(address, listener).url}), flush=True)
    while signal.sigtimedwait(_SIGNALS, REPORT_S) is None:
        uploads.report()
        store.forget_gone()
    server.stop()
    uploads.report()
    if address.path and listens is None:
        Path(address.path).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; the exit code."""
    parser = argparse.ArgumentParser(prog="supernode.chunkserver", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the supernode's directory")
    parser.add_argument("--listen", required=True, help="HOST:PORT or unix:///PATH")
    parser.add_argument("--key-file", default="", help="the cluster's key, without which nobody is served over TCP")
    parser.add_argument("--listener", type=int, help="number of an open socket that listens there")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    daemon.end_with_threads()
    try:
        serve(parsed.root, Address.parse(parsed.listen), parsed.listener, open_key(parsed.key_file))
    except ImgdistError as error:
        print(f"chunk server: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _bound(address: Address, listener: socket.socket) -> Address:
    """The address with the port that the kernel chose."""
    return address if address.path else replace(address, port=listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
