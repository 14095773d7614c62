"""A node and everything that it fetches from, behind one link that can be cut in three ways."""

from __future__ import annotations

import os
import random
import signal
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from parts import require_lazy_layers

from imgdist.demo import leftovers
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.image import ImageWriter, add_file
from imgdist.demo.link import Link
from imgdist.demo.processes import command
from imgdist.demo.push import push
from imgdist.demo.registry import registry

FILES = {f"f{number:02}": random.Random(number).randbytes(256 * 1024) for number in range(64)}
"""Each is a chunk of its own."""


class Site:
    """Registry, supernode and one agent that has everything, beyond `link`; `node` on this side."""

    def __init__(self, directory: Path, parts: ExitStack, settings: tuple[str, ...]) -> None:
        self.link = parts.enter_context(Link())
        far, near, inside = self.link.far, self.link.near, self.link.inside
        address = parts.enter_context(registry(directory / "registry", f"{far}:5000", inside=inside))
        writer = ImageWriter(directory / "image", level=1)
        writer.add_layer("files", _fill)
        self.reference, _ = push(writer.finish(command=["/none"]), address, "files", "1")
        plain = [address]
        self.supernode = parts.enter_context(Supernode(directory / "s", f"{far}:7600", plain_http=plain, inside=inside))
        quick = ("fill.quiet_s=0", "stop_timeout_s=0", "trace.enabled=false")
        self.peer = parts.enter_context(
            Agent(directory / "b", [self.supernode.url], inside=inside, peer_listen=f"{far}:7651", settings=quick)
        )
        self.peer.mount(self.reference, directory / "b/m")
        self.peer.wait_complete()
        settings = (*quick, *settings)
        self.node = parts.enter_context(
            Agent(directory / "a", [self.supernode.url], peer_listen=f"{near}:7651", settings=settings)
        )
        self.place = directory / "a/m"
        self.node.mount(self.reference, self.place)

    def present(self) -> dict[str, bool]:
        """For each file whether its bytes are in the node's image."""
        (image,) = self.node.root.glob("packs/*/image")
        data = image.read_bytes()
        return {name: content in data for name, content in FILES.items()}

    def share(self) -> float:
        """How much of the layer the node has."""
        (layer,) = self.node.layers()
        return float(layer["present_bytes"]) / float(layer["size_bytes"])

    def processes(self) -> list[int]:
        """The node's, the holder first."""
        return [self.node.pid, *_children(self.node.pid)]

    @contextmanager
    def dropped(self) -> Iterator[None]:
        """Requests arrive beyond the link, and nothing comes back."""
        with self._route(self.link.inside, "blackhole", self.link.near):
            yield

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Whoever connects is told at once that there is no way."""
        with self._route((), "unreachable", self.link.far):
            yield

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Registry, supernode and peer stand still; the kernel accepts connections in their names."""
        roots = [self.supernode.pid, self.peer.pid, *leftovers.processes_with("docker-registry")]
        pids = [pid for root in roots for pid in (root, *_descendants(root)) if _is_beyond(pid, self.link)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def _route(self, inside: tuple[str, ...], kind: str, address: str) -> Iterator[None]:
        command(*inside, "ip", "route", "add", kind, address)
        try:
            yield
        finally:
            command(*inside, "ip", "route", "delete", kind, address)


@contextmanager
def site(directory: Path, *settings: str) -> Iterator[Site]:
    """A site; skips (in CI: fails) where a part is missing."""
    require_lazy_layers()
    with ExitStack() as parts:
        yield Site(directory, parts, settings)


def _fill(tar: tarfile.TarFile) -> None:
    for name, content in FILES.items():
        add_file(tar, name, content)


def _children(pid: int) -> list[int]:
    return sorted(
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    )


def _descendants(pid: int) -> list[int]:
    return [one for child in _children(pid) for one in (child, *_descendants(child))]


def _is_beyond(pid: int, link: Link) -> bool:
    return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{link.namespace}").st_ino
