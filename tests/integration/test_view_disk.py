"""A real view over a disk that stalls: another view's file, of which nothing is there yet, is the layer's image."""

from __future__ import annotations

import random
from pathlib import Path

from viewrig import ImageFile, Misses, Readers, raw_view, read_direct

from imgdist.pack import BLOCK

SIZE = 1 << 20
READERS = 12
"""More than the view has threads of any kind."""


def test_stalled_disk_stops_neither_other_layers_nor_misses(tmp_path: Path) -> None:
    for name in ("disk", "view"):
        (tmp_path / name).mkdir()
    with raw_view(tmp_path / "disk") as disk, raw_view(tmp_path / "view") as view:
        at_disk, misses = Misses(), Misses()
        disk_link, link = disk.link(at_disk), view.link(misses)
        try:
            content = random.Random(1).randbytes(SIZE)
            platter = ImageFile(tmp_path, 2, content)
            platter.show(disk_link)
            slow, fast = ImageFile(tmp_path, 3, content), ImageFile(tmp_path, 4, content)
            slow.present.mark(0, SIZE // BLOCK)
            slow.image = disk.directory / platter.name
            fast.fill(0, SIZE // 2)
            for image in (slow, fast):
                image.show(link)

            stuck = Readers(view.directory / slow.name, [(at * BLOCK, BLOCK) for at in range(READERS)])
            at_disk.wait_for(lambda: bool(at_disk.all))
            assert read_in_time(view.directory / fast.name, 0) == content[:BLOCK]
            missing = Readers(view.directory / fast.name, [(SIZE - BLOCK, BLOCK)])
            misses.wait_for(lambda: bool(misses.all))
            fast.fill(SIZE - BLOCK, SIZE)
            link.written(fast.node, SIZE - BLOCK, SIZE)
            assert missing.join() == {(SIZE - BLOCK, BLOCK): content[-BLOCK:]}
            assert not stuck.results

            platter.fill_all()
            disk_link.written(platter.node, 0, SIZE)
            assert stuck.join() == {(at, size): content[at : at + size] for at, size in stuck.join()}
            assert read_direct(view.directory / slow.name, 0, SIZE) == content
            assert len(stuck.results) == READERS
        finally:
            link.close()
            disk_link.close()


def read_in_time(path: Path, offset: int) -> bytes | OSError:
    """On a thread: a view whose threads are all stuck must fail the test, not hang it."""
    return Readers(path, [(offset, BLOCK)]).join(5)[(offset, BLOCK)]
