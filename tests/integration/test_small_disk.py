"""A node whose disk is small: what goes, what stays, and what a full one does to containers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from blake3 import blake3
from rig.containerds import Setting
from rig.cri import Container
from rig.images import LayerTar, busybox_layer
from rig.small_disk import SmallDisk, small_disk
from rig.stack import Stack, stack

from fuse.present import HEADER_SIZE
from imgdist.api import JsonApi
from imgdist.demo import caches
from imgdist.demo.agent import IMGDIST
from imgdist.demo.processes import wait_until
from imgdist.pack import BLOCK
from imgdist.pack.index import Index

_DISK = 160 << 20
_REFUSED = "imgdist_disk_refused_bytes_total "
_QUICK = ("fill.quiet_s=0", "switch.idle_s=0.2")
_BIG = [random.Random(seed).randbytes(12_000_000) for seed in range(3)]


@dataclass
class Site:
    """A stack whose agent has a small disk."""

    stack: Stack
    disk: SmallDisk

    def image(self, number: int) -> str:
        """Pushed: busybox, and a layer of 12 MB that does not compress."""
        layer = LayerTar().add(f"big{number}", _BIG[number]).bytes()
        return self.stack.workshop.push(f"image{number}", [busybox_layer(), layer]).reference

    def gc(self, *flags: str) -> dict[str, object]:
        """What `imgdist gc --json` prints."""
        argv = [*IMGDIST, "gc", "--json", *flags, "--run", str(self.stack.node.run)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        report: dict[str, object] = json.loads(ran.stdout)
        return report

    def refused_bytes(self) -> float:
        """Of chunks that the disk did not take, as the agent counts them."""
        metrics = JsonApi(f"unix://{self.stack.node.run}/api.sock", "agent").text("/metrics")
        return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(_REFUSED))

    def packs(self) -> list[Path]:
        return sorted((self.stack.node.root / "packs").iterdir())


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    settings = getattr(request, "param", ())
    with small_disk(tmp_path / "s/a/root", _DISK) as disk, stack(tmp_path / "s", (*_QUICK, *settings)) as running:
        yield Site(running, disk)


def reads(container: Container, number: int) -> bool:
    found = container.run("/bin/sha256sum", f"/big{number}").split()[0].decode()
    return found == hashlib.sha256(_BIG[number]).hexdigest()


def wrong_chunks(pack: Path) -> list[int]:
    """Chunks that the present map counts, of which the image does not have the bytes."""
    index = Index.load((pack / "index").read_bytes())
    present = (pack / "present").read_bytes()[HEADER_SIZE:]
    wrong = []
    with open(pack / "image", "rb") as image:
        for chunk in range(index.chunk_count):
            first, count = index.start(chunk) // BLOCK, index.size(chunk) // BLOCK
            marks = present[first : first + count].count(1)
            image.seek(index.start(chunk))
            right = blake3(image.read(index.size(chunk))).digest() == index.digest(chunk)
            if 0 < marks < count or (marks and not right):
                wrong.append(chunk)
    return wrong


@pytest.mark.parametrize("site", [("fill.mode=none", "trace.enabled=false")], indirect=True)
@pytest.mark.parametrize("version", ["1.6", "2"])
def test_containers_go_on_and_new_ones_start_on_a_full_disk(site: Site, tmp_path: Path, version: str) -> None:
    reference, other = site.image(0), site.image(1)
    daemon = site.stack.containerd(Setting(version))  # type: ignore[arg-type]
    with daemon.cri() as cri:
        cri.pull(reference)
        with cri.pod("first", tmp_path / "logs") as pod:
            old = pod.start("old", reference, "/bin/sleep", "100000")
            old.run("/bin/cat", "/etc/passwd")
            (lazy,) = (layer for layer in site.stack.node.layers() if layer["state"] == "filling")
            assert lazy["present_bytes"] < 1 << 20, "next to nothing of the big layer is here"
            site.disk.fill()

            new = pod.start("new", reference, "/bin/sleep", "100000")
            assert new.run("/bin/cat", "/etc/group") == b"root:x:0:\n"
            with pytest.raises(grpc.RpcError):
                cri.pull(other)
            site.disk.fill()
            assert reads(old, 0), "what was absent when the disk became full"
            assert old.running() and new.running()
            site.disk.fill()
            later = pod.start("later", reference, "/bin/sleep", "100000")
            caches.drop()
            assert reads(later, 0)
            assert {pack.name: wrong_chunks(pack) for pack in site.packs()} == {pack.name: [] for pack in site.packs()}

            site.disk.relieve()
            cri.pull(other)
            assert reads(pod.start("other", other, "/bin/sleep", "100000"), 1)


@pytest.mark.parametrize("site", [("fill.mode=none", "trace.enabled=false")], indirect=True)
def test_chunks_that_the_disk_refuses_are_read_from_memory(site: Site, tmp_path: Path) -> None:
    """As on a file system that promises no block: the image's absent blocks have none."""
    reference = site.image(0)
    daemon = site.stack.containerd(Setting("2"))
    with daemon.cri() as cri:
        cri.pull(reference)
        with cri.pod("pod", tmp_path / "logs") as pod:
            container = pod.start("reads", reference, "/bin/sleep", "100000")
            (pack,) = (pack for pack in site.packs() if _missing(pack))
            for chunk in _missing(pack):
                _punch(pack, chunk)
            site.disk.fill()
            before = _missing(pack)
            assert reads(container, 0), "many reads of several chunks each"
            assert len(_missing(pack)) > len(before) // 2, "few found room, of what was freed for them"
            assert wrong_chunks(pack) == []
            assert site.refused_bytes() > 6_000_000

            site.disk.relieve()
            caches.drop()
            assert reads(container, 0)
            assert _missing(pack) == [] and wrong_chunks(pack) == []


def _missing(pack: Path) -> list[int]:
    index = Index.load((pack / "index").read_bytes())
    present = (pack / "present").read_bytes()[HEADER_SIZE:]
    return [chunk for chunk in range(index.chunk_count) if not present[index.start(chunk) // BLOCK]]


def _punch(pack: Path, chunk: int) -> None:
    index = Index.load((pack / "index").read_bytes())
    place = ["--offset", str(index.start(chunk)), "--length", str(index.size(chunk))]
    subprocess.run(["fallocate", "--punch-hole", *place, str(pack / "image")], check=True)


@pytest.mark.parametrize("site", [("fill.mode=none", "trace.enabled=false")], indirect=True)
def test_a_supernode_keeps_what_agents_want_and_one_that_lost_it_makes_it_anew(site: Site, tmp_path: Path) -> None:
    reference = site.image(0)
    daemon = site.stack.containerd(Setting("2"))
    with daemon.cri() as cri:
        cri.pull(reference)
        with cri.pod("pod", tmp_path / "logs") as pod:
            container = pod.start("reads", reference, "/bin/sleep", "100000")
            supernode = site.stack.supernode
            why = [kept["why"] for kept in site.gc("--supernode", supernode.url)["kept"]]  # type: ignore[attr-defined]
            assert "wanted by agents" in why
            supernode.stop()
            for name in ("packs", "layers"):
                shutil.rmtree(supernode.root / name)
            site.stack.start_supernode()
            assert reads(container, 0)


def test_above_the_watermark_what_nothing_uses_goes_and_comes_again(site: Site, tmp_path: Path) -> None:
    references = [site.image(number) for number in range(3)]
    daemon = site.stack.containerd(Setting("2"))
    with daemon.cri() as cri:
        for reference in references:
            cri.pull(reference)
        site.stack.node.wait_settled(4)
        with cri.pod("pod", tmp_path / "logs") as pod:
            used = pod.start("used", references[0], "/bin/sleep", "100000")
            for reference in references[1:]:
                cri.remove_image(reference)
            wait_until(lambda: len(_removable(site)) == 2, "two layers out of use", 20)
            before = site.packs()
            would = site.gc("--dry-run")
            assert site.packs() == before and would["freed_bytes"] > 24_000_000  # type: ignore[operator]
            why = {kept["pack_id"]: kept["why"] for kept in would["kept"]}  # type: ignore[attr-defined]
            assert set(why.values()) == {"used by a snapshot"}

            site.disk.fill()  # what needs space now gets it from what nothing uses
            assert pod.start("new", references[0], "/bin/sleep", "1").id
            wait_until(lambda: len(site.packs()) == len(before) - 2, "the unused packs gone", 20)
            assert not [path for pack in site.packs() for path in pack.glob("frames") if path.stat().st_size > 4096]
            site.disk.relieve()
            assert reads(used, 0)
            cri.pull(references[1])
            assert reads(pod.start("again", references[1], "/bin/sleep", "100000"), 1)


def _removable(site: Site) -> list[object]:
    return [row for row in site.gc("--dry-run")["removed"] if row["what"] == "pack"]  # type: ignore[attr-defined]


def test_usage_is_what_du_says(site: Site, tmp_path: Path) -> None:
    """Each snapshot without its parents; what CRI adds up for the kubelet."""
    reference = site.image(0)
    daemon = site.stack.containerd(Setting("2"))
    with daemon.cri() as cri:
        cri.pull(reference)
        site.stack.node.wait_settled(2)
        with cri.pod("pod", tmp_path / "logs") as pod:
            container = pod.start("writes", reference, "/bin/sleep", "100000")
            container.run("/bin/sh", "-c", "cat /big0 /big0 > /copy")
            os.sync()

            def agrees() -> bool:
                """CRI takes stock every ten seconds."""
                _, used = cri.image_file_system()
                return abs(used / _du(site) - 1) <= 0.02

            wait_until(agrees, "ImageFsInfo within 2 % of du", 30)
            free = site.disk.free_bytes
            container.run("/bin/sh", "-c", "cat /big0 > /copy2")
            os.sync()
            before = _du(site)
            assert abs((free - site.disk.free_bytes) / 12_000_000 - 1) <= 0.02, "statfs agrees, too"
            assert before > 48_000_000


def _du(site: Site) -> int:
    """Bytes below what holds packs and snapshots."""
    paths = [str(site.stack.node.root / name) for name in ("packs", "snapshots")]
    ran = subprocess.run(["du", "-s", "-c", "--block-size=1", *paths], capture_output=True, text=True, check=True)
    return int(ran.stdout.splitlines()[-1].split()[0])
