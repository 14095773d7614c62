"""The leak check itself: it must see what it is there for, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import leaks
from parts import require


def test_a_process_that_left_our_tree_is_found(tmp_path: Path) -> None:
    before = leaks.inventory(tmp_path, all_mounts=False)
    shell = subprocess.run(
        ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, text=True, check=True
    )
    pid = int(shell.stdout)
    try:
        now = leaks.inventory(tmp_path, all_mounts=False)
        found = {number for number, _ in now.processes - before.processes}
        assert pid in found or any("sleep 600" in command for _, command in now.processes - before.processes)
    finally:
        for number, command in leaks.inventory(tmp_path, all_mounts=False).processes - before.processes:
            if "sleep 600" in command:
                os.kill(number, signal.SIGTERM)


def test_what_ends_within_the_grace_is_no_leak(tmp_path: Path) -> None:
    before = leaks.inventory(tmp_path, all_mounts=False)
    child = subprocess.Popen(["sleep", "0.3"])
    left = leaks.left_over(before, lambda: _reaped(child, tmp_path), shared=False)
    assert left == []


def test_mount_and_loop_are_found_and_named(tmp_path: Path) -> None:
    require(os.getuid() == 0, "root")
    before = leaks.inventory(tmp_path, all_mounts=False)
    with _loop_mounted(tmp_path):
        now = leaks.inventory(tmp_path, all_mounts=False)
        assert now.mounts - before.mounts == {str(tmp_path / "mnt")}
        (loop,) = now.loops - before.loops
        assert loop.endswith(f" on {tmp_path / 'disk'}")


def test_a_wider_fixtures_directory_is_not_the_tests_to_answer_for(tmp_path: Path) -> None:
    shared = f"{tmp_path}/stack/"
    before = leaks.Inventory(frozenset(), frozenset(), frozenset(), frozenset({shared}))
    now = leaks.Inventory(
        mounts=frozenset({f"{shared}l/1", f"{tmp_path}/mine"}),
        loops=frozenset({f"/dev/loop0 on {shared}image"}),
        processes=frozenset(),
        entries=frozenset(),
    )
    assert leaks._difference(before, now, shared=True) == [(0, f"mount {tmp_path}/mine")]
    assert len(leaks._difference(before, now, shared=False)) == 3


def _reaped(child: subprocess.Popen[bytes], directory: Path) -> leaks.Inventory:
    child.poll()
    return leaks.inventory(directory, all_mounts=False)


@contextmanager
def _loop_mounted(directory: Path) -> Iterator[None]:
    disk, mount = directory / "disk", directory / "mnt"
    mount.mkdir()
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mount], check=True)
