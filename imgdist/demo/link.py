"""A network namespace behind a veth pair shaped both ways by tc tbf: "the datacenter" of the throw-away stack.

The registry and the supernode live inside, containerd and the agent outside: a plain pull and imgdist share one link.
This kernel family may lack netem, so delay is the relay's business (imgdist/demo/relay.py).
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import TracebackType

from imgdist.demo.processes import command
from imgdist.errors import ImgdistError, UnsupportedError

# At most half a chunk may pass unshaped, else short transfers would look faster than the link.
BURST_BYTES = 128 * 1024
# A queue this long delays at 200 Mbit/s by 20 ms at most; senders on this machine hold back before it drops (TSQ).
QUEUE_BYTES = 512 * 1024


class Link:
    """A context manager: makes the namespace and both ends, removes them. Needs root and iproute2.

    `near` and `far` are the IPv4 addresses of this side and of the namespace's side; unshaped until `shape()`.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise UnsupportedError("a shaped link needs root: expected uid 0; run it with sudo")
        self._number = self._make()
        self.namespace = f"imgdist-{self._number}"
        self._device = f"imgd{self._number}n"
        self.near = f"10.213.{self._number}.1"
        self.far = f"10.213.{self._number}.2"
        self.bits_per_s: int | None = None

    @staticmethod
    def _make() -> int:
        """Take a number nobody uses: making the pair fails where the name is taken, so two stacks cannot share one."""
        free = [n for n in range(1, 255) if not Path(f"/sys/class/net/imgd{n}n").exists()]
        random.shuffle(free)
        for number in free[:8]:
            try:
                command("ip", "link", "add", f"imgd{number}n", "type", "veth", "peer", "name", f"imgd{number}f")
            except ImgdistError as error:
                if "File exists" in str(error):
                    continue
                raise
            return number
        raise ImgdistError("link: no free name for a veth pair (imgd1n..imgd254n); remove old ones: ip link del imgdNn")

    def __enter__(self) -> Link:
        far_device = f"imgd{self._number}f"
        try:
            command("ip", "netns", "add", self.namespace)
            command("ip", "link", "set", far_device, "netns", self.namespace)
            command("ip", "address", "add", f"{self.near}/30", "dev", self._device)
            command("ip", "link", "set", self._device, "up")
            command(*self.inside, "ip", "address", "add", f"{self.far}/30", "dev", far_device)
            command(*self.inside, "ip", "link", "set", far_device, "up")
            command(*self.inside, "ip", "link", "set", "lo", "up")
        except BaseException:
            self._undo()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()

    def _undo(self) -> None:
        # Deleting one end deletes the pair; the namespace lives on until its last process is gone.
        if Path(f"/sys/class/net/{self._device}").exists():
            command("ip", "link", "delete", self._device)
        if Path(f"/run/netns/{self.namespace}").exists():
            command("ip", "netns", "delete", self.namespace)

    @property
    def inside(self) -> tuple[str, ...]:
        """Command prefix that runs a program inside the namespace, same pid, no shell.

        Not `ip netns exec`: that gives the program a mount namespace of its own, whose copies of our mounts keep loop
        devices busy; and it fails in a chroot.
        """
        return ("nsenter", f"--net=/run/netns/{self.namespace}", "--")

    def shape(self, bits_per_s: int, *, burst_bytes: int = BURST_BYTES) -> None:
        """Limit each direction to `bits_per_s` from now on; `burst_bytes` may pass at once after a pause."""
        shaper = ("root", "tbf", "rate", f"{bits_per_s}bit", "burst", f"{burst_bytes}b", "limit", f"{QUEUE_BYTES}b")
        command("tc", "qdisc", "replace", "dev", self._device, *shaper)
        command(*self.inside, "tc", "qdisc", "replace", "dev", f"imgd{self._number}f", *shaper)
        self.bits_per_s = bits_per_s

    def unshape(self) -> None:
        """Full speed again."""
        if self.bits_per_s is not None:
            command("tc", "qdisc", "delete", "dev", self._device, "root")
            command(*self.inside, "tc", "qdisc", "delete", "dev", f"imgd{self._number}f", "root")
            self.bits_per_s = None

    def received_bytes(self) -> int:
        """Bytes that have come out of the namespace so far, headers counted."""
        return int(Path(f"/sys/class/net/{self._device}/statistics/rx_bytes").read_text())

    def sent_bytes(self) -> int:
        """Bytes that have gone into the namespace so far, headers counted."""
        return int(Path(f"/sys/class/net/{self._device}/statistics/tx_bytes").read_text())
