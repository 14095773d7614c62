"""The demo's update on a small image: what two releases share is copied, not fetched, and nothing is left behind."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from parts import require, require_lazy_layers

from imgdist.demo.containerd import installs
from imgdist.demo.image import EPOCH_S, Image, ImageWriter, add_file, member
from imgdist.demo.stack import Stack
from imgdist.demo.update import measured

_ARGV = ("/bin/cat", "/release")
_KEPT_BYTES, _CHANGED_BYTES = 4 << 20, 1 << 20


def _release(directory: Path, number: int, kept: bytes) -> Image:
    """Built at a time of its own: busybox, `kept`, as much as changes, and a line that says which release it is."""
    writer = ImageWriter(directory / str(number), level=1, built_s=EPOCH_S + number)

    def fill(tar: tarfile.TarFile) -> None:
        for name in ("bin", "dev", "proc", "sys"):
            tar.addfile(member(name, type=tarfile.DIRTYPE, mode=0o755, mtime=EPOCH_S + number))
        add_file(tar, "bin/cat", Path("/bin/busybox").read_bytes(), 0o755)
        add_file(tar, "kept", kept)
        add_file(tar, "changed", os.urandom(_CHANGED_BYTES))
        add_file(tar, "release", b"release %d\n" % number)

    writer.add_layer("all of it", fill)
    return writer.finish(command=_ARGV)


def test_a_patch_release_is_fetched_in_part(tmp_path: Path) -> None:
    require_lazy_layers("docker-registry", "runc", "tc")
    require(Path("/bin/busybox").exists(), "busybox-static")
    found = [install for install in installs() if install.major >= 2]
    require(found, "containerd 2.x (scripts/parts test)")
    kept = os.urandom(_KEPT_BYTES)
    old, new = (_release(tmp_path, number, kept) for number in (1, 2))
    steps: list[str] = []
    with Stack(found[0], bits_per_s=200_000_000) as stack:
        pushed = stack.push(new, "app")
        stack.preheat(pushed)
        fresh = stack.lazy("imgdist", pushed, _ARGV, filled=True)
        update = measured(stack, (old, new), pushed, _ARGV, fresh, steps.append)
    assert fresh.output == update.start.output == "release 2\n"
    assert update.new_layers == update.layers == 1
    assert fresh.copied_bytes == 0 and fresh.fetched_bytes > _KEPT_BYTES + _CHANGED_BYTES
    assert update.start.copied_bytes >= _KEPT_BYTES
    assert _CHANGED_BYTES <= update.start.fetched_bytes < _CHANGED_BYTES + _KEPT_BYTES // 2
    assert update.spared_bytes >= _KEPT_BYTES
    assert len(steps) == 2
