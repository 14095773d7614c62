"""View, slots, loop device and EROFS on this kernel: equal trees, and no read lost however the view dies."""

from __future__ import annotations

import io
import os
import random
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load import KILLS, PATIENCE_S, Load, cached, direct
from parts import require
from rig import tree
from shown import CHUNK, Shown, files, layer_tar, mounted, shown
from viewrig import Readers, read_direct

from agent.layers import loop
from fuse.slots import SLOT_SIZE, SLOTS
from imgdist.pack import BLOCK

SWITCHES = 60
WAITING = 100

Report = Callable[[str, object], None]


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Shown]:
    require(os.geteuid() == 0, "root")
    with shown(tmp_path) as layer:
        yield layer


def test_what_is_mounted_equals_the_tar(layer: Shown, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    with tarfile.open(fileobj=io.BytesIO(layer_tar())) as archive:
        archive.extractall(expected, numeric_owner=True, filter="fully_trusted")
        soft = archive.getmember("etc/soft")  # whose time tarfile does not set
    os.utime(expected / "etc/soft", (soft.mtime, soft.mtime), follow_symlinks=False)
    os.utime(expected / "etc", (soft.mtime, soft.mtime))
    os.setxattr(expected / "etc/tagged", "user.tag", b"value")
    layer.misses.answer = layer.answer
    with mounted(layer, tmp_path / "m"):
        assert tree.differences(tree.read(tmp_path / "m"), tree.read(expected)) == []
    assert layer.misses.all


def test_a_hundred_reads_that_hang_are_answered_by_the_successor(layer: Shown, report: Report) -> None:
    layer.image.fill(0, CHUNK)
    ranges = [(CHUNK + number * 4 * BLOCK, BLOCK) for number in range(WAITING)]
    with loop.attached(str(layer.file)) as device:
        readers = Readers(device, ranges)
        layer.misses.wait_for(lambda: len(layer.misses.all) >= WAITING, PATIENCE_S)
        assert layer.image.present.parked == WAITING
        for number in range(20):  # what is present passes them
            assert read_direct(device, number * BLOCK, BLOCK) == layer.content[number * BLOCK : (number + 1) * BLOCK]
        layer.misses.answer = layer.answer
        layer.view.kill_view()
        answers = readers.join(PATIENCE_S)
        assert answers == {(at, size): layer.content[at : at + size] for at, size in ranges}
    report("reads that hang while the view is killed, answered rightly by its successor", len(answers))


def test_the_view_killed_at_any_moment_under_readers(layer: Shown, tmp_path: Path, report: Report) -> None:
    rng = random.Random(KILLS)
    layer.misses.answer = layer.answer_late
    with mounted(layer, tmp_path / "m") as device:
        contents = [(tmp_path / "m" / name, content) for name, content in files().items()]
        readers = [direct(device, layer.content, layer.forget)] * 4 + [cached(contents)] * 3
        readers += [direct(layer.file, layer.content, layer.forget)] * 2
        with Load(readers).running() as load:
            for _ in range(KILLS):
                load.wait_for_progress(1)
                time.sleep(rng.uniform(0, 0.1))
                layer.view.kill_view()
    report(f"{KILLS} kills of the view under 9 readers: right reads", load.reads)


def test_slots_are_in_memory_before_a_request_is(layer: Shown, report: Report) -> None:
    """A page of them that the kernel had to fetch while a SIGKILL is pending would cost its reader an EIO."""
    for _ in range(2):
        pid = layer.view.view_pid()
        memory = _slots_memory(pid)
        assert memory["Size"] * 1024 > SLOTS * SLOT_SIZE
        assert (memory["Rss"], memory["Locked"]) == (memory["Size"], memory["Size"])
        layer.view.kill_view()
        layer.image.fill_all()
        assert read_direct(layer.file, 0, BLOCK) == layer.content[:BLOCK]  # its successor serves
    report("request slots in memory and locked, KiB", memory["Locked"])


def test_the_file_below_a_mount_is_switched_under_readers(layer: Shown, tmp_path: Path, report: Report) -> None:
    layer.image.fill_all()
    with mounted(layer, tmp_path / "m") as device:
        contents = [(tmp_path / "m" / name, content) for name, content in files().items()]
        readers = [direct(device, layer.content)] * 3 + [cached(contents)] * 3
        with Load(readers).running() as load, open(layer.local, "rb") as local, open(layer.file, "rb") as view:
            for number in range(SWITCHES):
                loop.change_file(device, (view if number % 2 else local).fileno())
                load.wait_for_progress(1)
        assert loop.flags(device) == (True, True, True)
        assert [found.path for found in loop.find(str(layer.file))] == [device]
    report(f"{SWITCHES} switches of the loop device's file under 6 readers: right reads", load.reads)


def _slots_memory(pid: int) -> dict[str, int]:
    """KiB by name of all mappings of the slots together, from /proc/PID/smaps (proc(5))."""
    total: Counter[str] = Counter()
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE):
        if "/memfd:imgdist-slots" in mapping:
            total.update({name: int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB", mapping, re.MULTILINE)})
    return total
