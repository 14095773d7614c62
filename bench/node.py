"""What several benchmarks measure: a registry, a supernode and an agent of their own on loopback, at full speed."""

from __future__ import annotations

import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgdist.demo import leftovers
from imgdist.demo.agent import Agent, Supernode
from imgdist.demo.image import Image, ImageWriter, member
from imgdist.demo.interrupts import shielded
from imgdist.demo.ports import free_port
from imgdist.demo.push import push
from imgdist.demo.registry import registry

_SOURCES = ("/usr/bin", "/usr/lib", "/usr/share", "/usr/local")


@dataclass(frozen=True, slots=True)
class Site:
    """A datacenter: the registry's address and a supernode that knows it."""

    directory: Path
    registry: str
    supernode: Supernode

    def publish(self, image: Image, name: str) -> str:
        """Push the image and have the supernode convert it; its reference."""
        reference, _ = push(image, self.registry, name, "bench")
        self.supernode.preheat(reference)
        return reference

    def agent(self, name: str, settings: Sequence[str] = ()) -> Agent:
        """A fresh agent, to be entered. Its layers in use need not be completed when it stops."""
        return Agent(self.directory / name, [self.supernode.url], settings=["stop_timeout_s=0", *settings])


@contextmanager
def site() -> Iterator[Site]:
    """Registry and supernode in a directory of their own; whatever is left of it and of its agents goes at the end."""
    # Not /tmp, which may be memory: dropping the page cache would not make that cold.
    directory = Path(tempfile.mkdtemp(prefix="imgdist-", dir="/var/tmp"))
    with ExitStack() as undo:
        undo.callback(_remove, directory)
        address = undo.enter_context(registry(directory / "registry", f"127.0.0.1:{free_port()}"))
        supernode = Supernode(directory / "supernode", f"127.0.0.1:{free_port()}", plain_http=[address])
        yield Site(directory, address, undo.enter_context(supernode))


def image_of_this_machine(directory: Path, layers: int, layer_bytes: int) -> Image:
    """An image of this machine's files, each in one layer only, `layer_bytes` of content in each."""
    writer = ImageWriter(directory, level=1)
    files = _files()
    for number in range(layers):

        def fill(tar: tarfile.TarFile, number: int = number) -> None:
            size = 0
            directories: set[Path] = set()
            for path in files:
                name = f"{number:03}{path}"
                for directory in sorted({*Path(name).parents} - {Path()} - directories):
                    tar.addfile(member(str(directory), type=tarfile.DIRTYPE, mode=0o755))
                    directories.add(directory)
                with path.open("rb") as content:
                    status = path.stat()
                    tar.addfile(member(name, size=status.st_size, mode=status.st_mode & 0o777), content)
                size += status.st_size
                if size >= layer_bytes:
                    return
            raise RuntimeError(f"this machine has too few files for {layers} layers of {layer_bytes} bytes")

        writer.add_layer(f"layer {number}", fill)
    return writer.finish(command=["/bin/true"])


def _files() -> Iterator[Path]:
    """Regular files up to 8 MiB, so that no layer is one file."""
    for source in [Path(sysconfig.get_paths()["stdlib"]), *map(Path, _SOURCES)]:
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= 8 << 20:
                yield path


def _remove(directory: Path) -> None:
    with shielded():
        leftovers.remove(directory)
