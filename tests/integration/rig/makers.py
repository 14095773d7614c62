"""Images as different builders make them, each pushed to the workshop's registry."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from conformance.odd_images import IMAGES
from parts import require
from rig.images import LayerTar, Workshop, busybox_layer, chain_id

from imgdist.demo.cache import cache_directory
from imgdist.demo.processes import command

_DEPTH = 70  # more than containerd's labels can list


@dataclass(frozen=True)
class Made:
    """An image in the registry: `layers` are its uncompressed tars, the base first."""

    reference: str
    chain_id: str
    layers: tuple[bytes, ...]


def busybox(workshop: Workshop, work: Path) -> Made:
    return _pushed(workshop, "busybox", [busybox_layer()])


def as_builders_make_them(workshop: Workshop, work: Path) -> Made:
    """As buildah and kaniko leave layers: directories only implied, whiteouts, opaque directories, replaced types."""
    base = LayerTar().add("etc/", mode=0o750, uid=3, gid=4).add("etc/conf.d/", mode=0o711).add("etc/conf.d/a", b"a")
    base.add("opt/").add("opt/old/").add("opt/old/1", b"1").add("opt/old/2", b"2").add("gone", b"x").add("swap/").add(
        "swap/x", b"x"
    )
    base.add("etc/shadow", b"root:*:\n", mode=0o640, gid=42, mtime=1_600_000_000.123456789)
    base.add("usr/bin/su", b"\x7fELF", mode=0o4755).link("usr/bin/su2", "usr/bin/su", hard=True, mode=0o4755)
    base.link("usr/lib", "../lib").link("dangling", "nowhere/at/all")
    base.add("var/fifo", type=tarfile.FIFOTYPE).add(
        "var/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666
    )
    middle = LayerTar().add("etc/conf.d/b", b"b", uid=70_000, gid=4_000_000_000).add(".wh.gone").add("opt/old/.wh.1")
    middle.add("deep/er/and/deeper", b"implied", mode=0o600).add("swap", b"now a file")
    middle.add("usr/bin/ping", b"\x7fELF", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": _capability()})
    middle.add("usr/share/note", b"n", pax_headers={"SCHILY.xattr.user.origin": "here", "SCHILY.xattr.trusted.no": "x"})
    top = LayerTar().add("opt/old/").add("opt/old/.wh..wh..opq").add("opt/old/3", b"3").add("usr/bin/.wh.su2")
    top.add("long/" + "n" * 200, b"l" * 5000).add("\u00fcml\u00e4ut/" + "p" * 120 + "/f", b"").add(
        "etc/conf.d/a", b"A2"
    )
    return _pushed(workshop, "builders", [busybox_layer(), base.bytes(), middle.bytes(), top.bytes()])


def _capability() -> str:
    """cap_net_raw=ep (linux/capability.h, VFS_CAP_REVISION_2); every byte is below 0x80, so a str carries it."""
    return bytes.fromhex("0100000200200000000000000000000000000000").decode()


def zstd(workshop: Workshop, work: Path) -> Made:
    layers = [
        busybox_layer(),
        LayerTar().add("a/").add("a/zeros", bytes(3 << 20)).add("a/b", os.urandom(70_000)).bytes(),
    ]
    return _pushed(workshop, "zstd", layers, compression="zstd")


def seventy_layers(workshop: Workshop, work: Path) -> Made:
    """Each layer adds a file, changes one of the layer before and hides one of the layer before that."""
    layers = [busybox_layer()]
    for number in range(1, _DEPTH):
        layer = LayerTar().add(f"n/{number}", b"%d" % number).add("last", b"%d" % number)
        if number > 2:
            layer.add(f"n/{number - 1}", b"changed", mode=0o600).add(f"n/.wh.{number - 2}")
        layers.append(layer.bytes())
    return _pushed(workshop, "deep", layers)


_ODD = (
    "implied_again_and_again implied_over_symlinks implied_in_sgid implied_listed_later_xattr opaque_then_merged"
    " whiteout_of_each types_replaced hard_links names sparse times"
)


def odd(workshop: Workshop, work: Path) -> Made:
    """Layers of legal and nasty members, each once, many with fix-up lowers."""
    return _pushed(workshop, "odd", list(dict.fromkeys(layer for name in _ODD.split() for layer in IMAGES[name])))


def by_umoci(workshop: Workshop, work: Path) -> Made:
    """umoci unpacks, diffs and repacks as a build tool does, with its own tar writer."""
    require(shutil.which("umoci") and shutil.which("skopeo"), "umoci and skopeo")
    layout = f"{work}/umoci"
    umoci = ["umoci"]
    command(*umoci, "init", "--layout", layout)
    command(*umoci, "new", "--image", f"{layout}:1")
    for step in (_first_step, _second_step):
        bundle = work / step.__name__
        command(*umoci, "unpack", "--image", f"{layout}:1", bundle)
        step(bundle / "rootfs")
        command(*umoci, "repack", "--image", f"{layout}:1", bundle)
    reference = f"{workshop.address}/umoci:1"
    policy = work / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    command("skopeo", "--policy", policy, "copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{reference}")
    return _from_layout(Path(layout), reference)


def _first_step(root: Path) -> None:
    (root / "bin").mkdir()
    shutil.copy2("/bin/busybox", root / "bin/busybox")
    os.link(root / "bin/busybox", root / "bin/sh")
    for name in ("keep", "drop"):
        (root / f"srv/{name}").mkdir(parents=True)
        (root / f"srv/{name}/file").write_text(name)
    os.chown(root / "srv/keep/file", 1000, 1001)
    os.setxattr(root / "srv/keep/file", "user.made", b"by umoci")


def _second_step(root: Path) -> None:
    shutil.rmtree(root / "srv/drop")
    (root / "srv/keep/second").write_text("2")
    os.chmod(root / "srv/keep", 0o2770)
    os.mkfifo(root / "srv/fifo")


def debian(workshop: Workshop, work: Path) -> Made:
    """Debian's minbase: 8,000 entries of every kind that a distribution has."""
    require(shutil.which("debootstrap"), "debootstrap")
    cached = cache_directory() / "minbase-bookworm.tar"
    if not cached.exists():
        root = work / "root"
        command("debootstrap", "--variant=minbase", "bookworm", root)
        part = cached.with_suffix(f".{os.getpid()}")
        tar = ("tar", "--create", "--xattrs", "--xattrs-include=*", "--format=posix", "--numeric-owner", "--sort=name")
        command(*tar, "--pax-option=delete=atime,delete=ctime", "--directory", root, "--file", part, ".")
        part.rename(cached)
    return _pushed(workshop, "debian", [cached.read_bytes(), LayerTar().add("etc/motd", b"hello\n").bytes()])


def _pushed(workshop: Workshop, name: str, layers: list[bytes], compression: str = "gzip") -> Made:
    image = workshop.push(name, layers, compression=compression)
    return Made(image.reference, image.chain_id, image.layers)


def _from_layout(layout: Path, reference: str) -> Made:
    """Read back what another tool wrote: layers and chain ID from the layout itself."""

    def blob(descriptor: dict[str, str]) -> bytes:
        return (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()

    manifest = json.loads(blob(json.loads((layout / "index.json").read_bytes())["manifests"][0]))
    layers = tuple(gzip.decompress(blob(layer)) for layer in manifest["layers"])
    return Made(reference, chain_id(layers), layers)
