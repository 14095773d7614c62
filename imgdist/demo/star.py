"""A star of network namespaces on one bridge: nodes and a "datacenter", each behind a link shaped both ways by tc tbf.

The bridge has a namespace of its own: this machine's firewall, which may look at bridged frames, has no say there, and
deleting the namespaces deletes everything. Only one device, this side's leg, is in the namespace of who makes the star.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from imgdist.demo import leftovers
from imgdist.demo.interrupts import shielded
from imgdist.demo.processes import command
from imgdist.errors import ImgdistError, UnsupportedError, UsageError

NODES_MAX = 200
_NUMBERS = range(1, 255)
_NETNS = Path("/run/netns")
_MTU = 1500

# The kernel hands a shaper packets of up to 64 KiB (GSO); a smaller burst would make it cut each one up.
BURST_BYTES = 64 * 1024
# What a port of a switch keeps; never less than a few such packets.
QUEUE_S, _QUEUE_LEAST = 0.02, 3 * BURST_BYTES
# Linux's own choice, whatever this machine's is: BBR sends 4 % twice through so short a queue (measured, 16 nodes on
# 25 Mbit/s: 58,000 segments of 1.4 million, here 3,700 of 0.8 million).
CONGESTION_CONTROL = "cubic"

_FRAME, _PAYLOAD = _MTU + 14, _MTU - 20 - 32
"""What tbf counts of a full packet, Ethernet's header included, and the TCP payload in it (with time stamps)."""


def goodput_bytes_per_s(bits_per_s: float) -> float:
    """TCP payload that a link shaped to `bits_per_s` carries at best: 1448 of each 1514 bytes that tbf counts."""
    return bits_per_s / 8 * _PAYLOAD / _FRAME


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a spoke has received and sent so far, as its device counts them: a packet of up to 64 KiB has one
    header there."""

    received: int
    sent: int

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.received - earlier.received, self.sent - earlier.sent)


@dataclass(frozen=True, slots=True)
class Spoke:
    """One namespace of a star: its name, its IPv4 address, and its link's devices inside and at the bridge."""

    namespace: str
    address: str
    bridge: str
    port: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Command prefix that runs a program in this namespace; why it is not `ip netns exec`: see `Link.inside`."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}", "--")

    def traffic(self) -> Traffic:
        """What has crossed the link."""
        shown = json.loads(command("ip", "-n", self.namespace, "-json", "-statistics", "link", "show", "dev", "eth0"))
        stats = shown[0]["stats64"]
        return Traffic(stats["rx"]["bytes"], stats["tx"]["bytes"])

    def shape(self, bits_per_s: int, *, delay_ms: float = 0.0) -> None:
        """Limit each direction to `bits_per_s` from now on; each packet also takes `delay_ms` in each direction.

        Raises UnsupportedError for a delay where the kernel has no netem (`Star.can_delay`).
        """
        queue = max(_QUEUE_LEAST, int(bits_per_s / 8 * QUEUE_S))
        tbf = ("tbf", "rate", f"{bits_per_s}bit", "burst", f"{BURST_BYTES}b", "limit", f"{queue}b")
        for device in self._devices():
            if not delay_ms:
                command("tc", *device[0], "qdisc", "replace", *device[1], "root", "handle", "1:", *tbf)
                continue
            try:
                delay = ("netem", "delay", f"{delay_ms}ms", "limit", "100000")
                command("tc", *device[0], "qdisc", "replace", *device[1], "root", "handle", "2:", *delay)
            except ImgdistError as error:
                raise UnsupportedError(f"a link with delay needs netem in the kernel: {error}") from None
            command("tc", *device[0], "qdisc", "replace", *device[1], "parent", "2:1", "handle", "1:", *tbf)

    def unshape(self) -> None:
        """Full speed again."""
        for device in self._devices():
            command("tc", *device[0], "qdisc", "replace", *device[1], "root", "pfifo_fast")

    def _devices(self) -> tuple[tuple[tuple[str, str], tuple[str, str]], ...]:
        return (("-n", self.namespace), ("dev", "eth0")), (("-n", self.bridge), ("dev", self.port))


class Star:
    """A context manager: makes the namespaces, removes them with all processes in them. Needs root and iproute2.

    `datacenter` and `nodes` are the spokes, unshaped until told; this side has `near` and reaches all of them. What is
    to go with the star lies in `directory` (short, for unix sockets): its mounts, loop devices and files are removed at
    the end. A star whose maker was killed is removed by the next one of its number, and the lowest number is taken.
    """

    def __init__(self, nodes: int) -> None:
        if os.geteuid() != 0:
            raise UnsupportedError("a star of namespaces needs root: expected uid 0; run it with sudo")
        if not 1 <= nodes <= NODES_MAX:
            raise UsageError(f"a star of {nodes} nodes: expected 1 to {NODES_MAX}")
        self._number, self._claim = _claim_number()
        self._name = f"imgdist-s{self._number}"
        self._leg = f"imgs{self._number}"
        # Not /tmp, which may be memory: dropping the page cache would not make that cold.
        self.directory = Path(f"/var/tmp/{self._leg}")
        network = ipaddress.ip_network(f"10.214.{self._number}.0/24")
        self.near = str(network[1])
        names = ["dc", *(str(number) for number in range(nodes))]
        self.datacenter, *self.nodes = [
            Spoke(f"{self._name}-{name}", str(network[2 + number]), self._name, f"p{name}")
            for number, name in enumerate(names)
        ]

    def __enter__(self) -> Star:
        with ExitStack() as undo:
            undo.callback(self._undo)
            self._remove()
            self.directory.mkdir()
            self._make_bridge()
            for spoke in (self.datacenter, *self.nodes):
                self._make_spoke(spoke)
            self.can_delay = self._has_netem()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()

    def _make_bridge(self) -> None:
        inside = ("-n", self._name)
        command("ip", "netns", "add", self._name)
        command("ip", *inside, "link", "add", "br0", "type", "bridge")
        command("ip", *inside, "link", "set", "br0", "up")
        command("ip", "link", "add", self._leg, "type", "veth", "peer", "name", "leg", "netns", self._name)
        command("ip", *inside, "link", "set", "leg", "master", "br0", "up")
        command("ip", "address", "add", f"{self.near}/24", "dev", self._leg)
        command("ip", "link", "set", self._leg, "up")

    def _make_spoke(self, spoke: Spoke) -> None:
        inside = ("-n", spoke.namespace)
        command("ip", "netns", "add", spoke.namespace)
        peer = ("peer", "name", spoke.port, "netns", spoke.bridge)
        command("ip", *inside, "link", "add", "eth0", "mtu", str(_MTU), "type", "veth", *peer)
        command("ip", "-n", spoke.bridge, "link", "set", spoke.port, "mtu", str(_MTU), "master", "br0", "up")
        command("ip", *inside, "address", "add", f"{spoke.address}/24", "dev", "eth0")
        command("ip", *inside, "link", "set", "eth0", "up")
        command("ip", *inside, "link", "set", "lo", "up")
        way = (str(ipaddress.ip_interface(f"{spoke.address}/24").network), "dev", "eth0", "src", spoke.address)
        command("ip", *inside, "route", "replace", *way, "proto", "kernel", "congctl", CONGESTION_CONTROL)

    def _has_netem(self) -> bool:
        try:
            command("tc", "-n", self._name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        except ImgdistError:
            return False
        command("tc", "-n", self._name, "qdisc", "delete", "dev", "lo", "root")
        return True

    def _undo(self) -> None:
        with shielded():
            try:
                self._remove()
            finally:
                self._claim.close()

    def _remove(self) -> None:
        """Processes, mounts, loop devices, files, then namespaces: each may be kept in use by what comes before it."""
        names = [path.name for path in _NETNS.iterdir()] if _NETNS.is_dir() else []
        ours = [name for name in names if name == self._name or name.startswith(f"{self._name}-")]
        for namespace in ours:
            for pid in command("ip", "netns", "pids", namespace).split():
                leftovers.kill_with_children(int(pid))
        if self.directory.exists():
            leftovers.remove(self.directory)
        if Path(f"/sys/class/net/{self._leg}").exists():
            command("ip", "link", "delete", self._leg)
        for namespace in ours:
            command("ip", "netns", "delete", namespace)


def _claim_number() -> tuple[int, socket.socket]:
    """The lowest number whose star has no living maker, and what holds it: an abstract socket ends with its process."""
    for number in _NUMBERS:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0imgdist-star-{number}")
        except OSError:
            claim.close()
        else:
            return number, claim
    raise ImgdistError(f"star: numbers {_NUMBERS[0]} to {_NUMBERS[-1]} are all taken by running stars")
