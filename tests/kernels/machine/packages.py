"""Debian's kernels for virtual machines: the image and the modules that the guest loads, downloaded once."""

from __future__ import annotations

import lzma
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_METAPACKAGES = {
    "5.10": "linux-image-cloud-amd64",
    "6.1": "linux-image-cloud-amd64",
    "6.12": "linux-image-6.12-cloud-amd64",
}
VERSIONS = tuple(_METAPACKAGES)
_OLDER_RELEASE = {"5.10": "bullseye-security"}
"""What Debian 12 does not have in its own lists, and where it is."""
_SOURCE = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security {} main\n"
)
_MODULES = ("virtio_pci", "virtio_blk", "fuse", "loop", "erofs", "overlay", "ext4")
_AS_ROOT = ("-o", "APT::Sandbox::User=root")  # or apt warns of each directory that its own user cannot write to


class PackageError(Exception):
    """A kernel cannot be had; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache: `release` as uname(1) has it, modules in the order in which they are loaded."""

    version: str
    release: str
    image: Path
    modules: tuple[Path, ...]


def kernel(version: str, cache: Path) -> Kernel:
    """The kernel from the directory `cache`, downloaded if it is not there. PackageError."""
    if version not in _METAPACKAGES:
        raise PackageError(f"kernel {version}: expected one of {', '.join(VERSIONS)}")
    home = cache / version
    if not (home / "release").exists():
        try:
            _fetch(version, home)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()
            raise PackageError(f"kernel {version}: {' '.join(error.cmd)}: {said[-1] if said else error}") from None
    modules = tuple(sorted((home / "modules").iterdir()))
    return Kernel(version, (home / "release").read_text().strip(), home / "vmlinuz", modules)


def _fetch(version: str, home: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kernel-") as name:
        work = Path(name)
        options = _private_lists(version, work) if version in _OLDER_RELEASE else list(_AS_ROOT)
        package = _newest(version, options)
        _run("apt-get", *options, "download", package, cwd=work)
        (deb,) = work.glob("*.deb")
        _run("dpkg", "-x", str(deb), str(work / "tree"))
        _keep(work / "tree", package.removeprefix("linux-image-"), home)


def _private_lists(version: str, work: Path) -> list[str]:
    """Options that give apt another release's lists without touching the machine's."""
    (work / "lists/partial").mkdir(parents=True)
    (work / "sources.list").write_text(_SOURCE.format(_OLDER_RELEASE[version]))
    options = [*_AS_ROOT, "-o", f"Dir::Etc::sourcelist={work}/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null"]
    options += ["-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}"]
    _run("apt-get", *options, "update", "-q")
    return options


def _newest(version: str, options: list[str]) -> str:
    """The package that the metapackage stands for today."""
    show = ("apt-cache", *options, "show", _METAPACKAGES[version])
    try:
        shown = _run(*show)
    except subprocess.CalledProcessError:
        _run("apt-get", *options, "update", "-q")
        shown = _run(*show)
    found = re.search(r"^Depends: (linux-image-\S+)", shown, re.MULTILINE)
    if found is None:
        raise PackageError(f"kernel {version}: {_METAPACKAGES[version]} names no kernel package:\n{shown}")
    return found[1]


def _keep(tree: Path, release: str, home: Path) -> None:
    """Move what the guest needs out of the unpacked package; the file `release` is last, and says that all is there."""
    _run("depmod", "-b", str(tree), release)
    paths: dict[str, None] = {}
    for module in _MODULES:
        shown = _run("modprobe", "-d", str(tree), "-S", release, "--show-depends", module)
        paths |= dict.fromkeys(line.split()[1] for line in shown.splitlines() if line.startswith("insmod "))
    (home / "modules").mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(map(Path, paths)):
        content = path.read_bytes()
        if path.suffix == ".xz":
            path, content = path.with_suffix(""), lzma.decompress(content)
        (home / "modules" / f"{number:02}-{path.name}").write_bytes(content)
    (home / "vmlinuz").write_bytes((tree / f"boot/vmlinuz-{release}").read_bytes())
    (home / "release").write_text(f"{release}\n")


def _run(*argv: str, cwd: Path | None = None) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=cwd).stdout
