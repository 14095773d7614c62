"""`imgdist mount` on a real node: agent with a supernode of its own, a registry on loopback, the kernel's mounts."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
from parts import require, require_lazy_layers
from rig import tree
from rig.images import LayerTar, Pushed, Workshop, busybox_layer
from rig.local_agent import LocalAgent
from rig.stack import free_port

from imgdist.demo import caches
from imgdist.demo.agent import Supernode
from imgdist.demo.processes import wait_until
from imgdist.demo.registry import registry
from imgdist.errors import ImgdistError

_BIG = random.Random(3).randbytes(6_000_000)
_LAZY = ("--set", "fill.mode=none", "--set", "trace.enabled=false")
_QUICK = ("--set", "fill.quiet_s=0", "--set", "switch.idle_s=0.1")
_NOBODY = ("--supernode", "http://127.0.0.1:9")  # the discard port: nobody listens
LAYER_KEYS = {
    "digest",
    "kind",
    "diff_id",
    "pack_id",
    "state",
    "size_bytes",
    "present_bytes",
    "sources",
    "proven",
    "revoked",
}

LAYERS = [
    busybox_layer(("etc/gone", b"x"), ("etc/stays", b"y")),
    LayerTar().add("srv/", mode=0o750, uid=7).add("srv/big", _BIG).link("srv/link", "big").bytes(),
    LayerTar().add("etc/", mode=0o755).add("etc/.wh.gone").add("etc/motd", b"hello\n").bytes(),
]


def unpacked(layers: Sequence[bytes], directory: Path) -> Path:
    """What an ordinary pull has: each tar unpacked over those below, with whiteouts carried out."""
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            for name in archive.getnames():
                head, last = os.path.split(name)
                if last.startswith(".wh."):
                    (directory / head / last.removeprefix(".wh.")).unlink()
        tar = ["tar", "--extract", "--preserve-permissions", "--numeric-owner", "--delay-directory-restore"]
        subprocess.run([*tar, "--exclude=.wh.*", "--directory", directory], input=layer, check=True)
    return directory


class Site:
    """A registry with one image, and an agent."""

    def __init__(self, address: str, workshop: Workshop, image: Pushed, agent: LocalAgent, directory: Path) -> None:
        self.address, self.workshop, self.image, self.agent = address, workshop, image, agent
        self.directory = directory

    def place(self, name: str = "m") -> Path:
        """An empty directory to mount on."""
        path = self.directory / name
        path.mkdir()
        return path

    def big(self) -> str:
        """Digest of the layer that is not fetched whole before it is mounted."""
        return self.image.layer_digests[1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require_lazy_layers("docker-registry")
    require(Path("/bin/busybox").exists(), "busybox-static")
    address = f"127.0.0.1:{free_port()}"
    with registry(tmp_path / "registry", address):
        workshop = Workshop(tmp_path / "images", address)
        agent = LocalAgent(tmp_path / "a", address)
        try:
            yield Site(address, workshop, workshop.push("app", LAYERS), agent, tmp_path / "a")
        finally:
            agent.close()
            print(agent.log()[-8000:])  # pytest shows it if the test fails


def test_what_is_mounted_equals_an_unpacked_image_and_goes_without_a_trace(site: Site, tmp_path: Path) -> None:
    (tmp_path / "oracle").mkdir()
    expected = tree.read(unpacked(LAYERS, tmp_path / "oracle"))
    agent, place = site.agent, site.place()
    agent.start(*_QUICK)
    agent.done("mount", site.image.reference, str(place))

    assert tree.differences(tree.read(place), expected) == []
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").write_bytes(b"")

    for _ in range(2):  # and again, from what is here
        agent.done("umount", str(place))
        assert list(place.iterdir()) == []
        wait_until(lambda: agent.mounts() == [agent.run / "view"] and not agent.loops(), "layers unmounted", 10)
        agent.done("mount", site.image.reference, str(place))
        assert (place / "srv/big").read_bytes() == _BIG
    agent.done("umount", str(place))
    assert agent.stop() == 0
    assert agent.mounts() == [] and agent.loops() == []
    assert [path.name for path in agent.run.iterdir()] == ["view"]


def test_a_writable_mount_keeps_its_writes_to_itself(site: Site) -> None:
    agent, place, other = site.agent, site.place(), site.place("other")
    agent.start(*_QUICK)
    agent.done("mount", "--rw", site.image.reference, str(place))
    agent.done("mount", "--rw", site.image.reference, str(other))
    (place / "etc/motd").write_bytes(b"mine\n")
    (place / "srv/big").unlink()
    assert (other / "etc/motd").read_bytes() == b"hello\n"
    assert (other / "srv/big").read_bytes() == _BIG
    agent.done("umount", str(place))
    agent.done("mount", "--rw", site.image.reference, str(place))
    assert (place / "etc/motd").read_bytes() == b"hello\n"


def test_the_documents_are_what_scripts_rely_on(site: Site) -> None:
    agent, place = site.agent, site.place()
    agent.start(*_LAZY)
    assert (agent.json("layers"), agent.json("images"), agent.json("status")["mounts"]) == ([], [], [])
    agent.done("mount", site.image.reference, str(place))

    layers = {layer["digest"]: layer for layer in agent.json("layers")}
    assert layers.keys() == set(site.image.layer_digests)
    assert all(layer.keys() == LAYER_KEYS and len(layer["pack_id"]) == 64 for layer in layers.values())
    assert [layers[digest]["state"] for digest in site.image.layer_digests] == ["complete", "filling", "complete"]
    big = layers[site.big()]
    assert len(_BIG) < big["size_bytes"] and 0 < big["present_bytes"] < 100_000
    assert set(big["sources"]) == {"supernode"}

    (image,) = agent.json("images")
    assert image["reference"] == site.image.reference
    assert image["manifest_digest"] == site.image.manifest_digest
    assert image["layers"] == list(site.image.layer_digests)
    assert image["complete"] is False and image["present_bytes"] < image["size_bytes"]

    status = agent.json("status")
    assert status["layers"] == {"complete": 2, "filling": 1}
    assert status["mounts"] == [str(place)] and status["lazy"] is True
    for command in ("layers", "images", "status"):
        assert agent.imgdist(command).returncode == 0


def test_what_goes_wrong_is_one_line_and_the_right_exit_code(site: Site) -> None:
    agent, place = site.agent, site.place()
    reference = site.image.reference
    code, line = agent.refused("mount", reference, str(place))
    assert code == 1 and "is it running?" in line
    agent.start(*_QUICK)
    agent.done("mount", reference, str(place))
    assert agent.refused("mount", reference, str(place)) == (
        2,
        f"imgdist: {place}: an image is mounted there already; imgdist umount it first",
    )
    assert agent.refused("mount", reference, str(place / "nowhere"))[0] == 2
    assert agent.refused("mount", "NOT A REFERENCE", str(place))[0] == 2
    code, line = agent.refused("mount", f"{site.address}/nothing:1", str(place))
    assert code == 1 and f"{site.address}/nothing" in line
    assert agent.refused("umount", str(site.directory))[0] == 1
    with open(place / "srv/big", "rb"):
        code, line = agent.refused("umount", str(place))
    assert code == 1 and f"{os.getpid()}" in line
    assert (place / "etc/motd").read_bytes() == b"hello\n"
    agent.done("umount", str(place))


def test_a_layer_that_cannot_be_lazy_fails_the_mount_and_leaves_nothing(site: Site) -> None:
    """A hard link to a file of a lower layer cannot be converted alone."""
    agent, place = site.agent, site.place()
    bad = LayerTar().link("etc/hard", "etc/stays", hard=True).bytes()
    image = site.workshop.push("bad", [*LAYERS, bad])
    agent.start(*_QUICK)
    code, line = agent.refused("mount", image.reference, str(place))
    assert code == 1 and image.layer_digests[-1] in line
    assert agent.states()[image.layer_digests[-1]] == "plain"
    assert agent.json("status")["mounts"] == []
    assert agent.stop() == 0
    agent.start(*_QUICK)  # nobody came to use the layers that could be had; it serves before it unmounts them
    wait_until(lambda: agent.mounts() == [agent.run / "view"], "layers unmounted", 45)  # busy: again after 30 s
    wait_until(lambda: not agent.loops(), "loop devices gone", 45)


def test_a_restart_alone_in_the_world_keeps_everything(tmp_path: Path, site: Site) -> None:
    agent, place, second = site.agent, site.place(), site.place("second")
    agent.start(*_QUICK)
    agent.done("mount", "--rw", site.image.reference, str(place))
    (place / "etc/motd").write_bytes(b"mine\n")
    wait_until(lambda: set(agent.states().values()) == {"complete", "switched"}, "layers switched", 30)
    assert agent.stop() == 0
    caches.drop()
    assert (place / "srv/big").read_bytes() == _BIG

    agent.start(*_QUICK, *_NOBODY)
    assert agent.json("status")["mounts"] == [str(place)]
    assert (place / "etc/motd").read_bytes() == b"mine\n"
    agent.done("mount", site.image.reference, str(second))  # all its layers are here
    caches.drop()
    assert (second / "srv/big").read_bytes() == _BIG
    assert agent.refused("mount", f"{site.address}/unknown:1", str(tmp_path))[0] == 1
    for directory in (place, second):
        agent.done("umount", str(directory))
    assert agent.stop() == 0
    assert agent.mounts() == [] and agent.loops() == []


def test_killed_whole_the_successor_rescues_an_incomplete_mount(site: Site) -> None:
    agent, place = site.agent, site.place()
    agent.start(*_LAZY)
    agent.done("mount", site.image.reference, str(place))
    with open(place / "srv/big", "rb") as early:
        assert early.read(4096) == _BIG[:4096]
        assert agent.states()[site.big()] == "filling"

        agent.kill()
        agent.start(*_LAZY)
        assert agent.states()[site.big()] == "filling"
        caches.drop()

        early.seek(3_000_000)
        assert early.read(100_000) == _BIG[3_000_000:3_100_000]
    assert (place / "srv/big").read_bytes() == _BIG
    assert "its view had died; the mount is right again" in agent.log()


def test_an_agent_that_starts_fetches_nothing_of_what_is_mounted(site: Site) -> None:
    """Whatever it looks at, also where the kernel has forgotten what it knew of the mounted devices."""
    agent = site.agent
    agent.start(*_LAZY)
    agent.done("mount", site.image.reference, str(site.place()))
    present = {layer["digest"]: layer["present_bytes"] for layer in agent.json("layers")}
    caches.drop()
    agent.kill_child("agent")
    wait_until(lambda: agent.imgdist("status").returncode == 0, "the agent is back", 30)
    time.sleep(1)  # longer than a chunk takes from a supernode beside it
    assert {layer["digest"]: layer["present_bytes"] for layer in agent.json("layers")} == present


def test_a_stop_completes_what_is_in_use(site: Site) -> None:
    agent, place = site.agent, site.place()
    agent.start(*_LAZY)
    agent.done("mount", site.image.reference, str(place))
    assert agent.states()[site.big()] == "filling"
    assert agent.stop() == 0
    assert agent.run / "view" not in agent.mounts()
    caches.drop()
    assert (place / "srv/big").read_bytes() == _BIG
    assert "WARNING" not in agent.log() and "ERROR" not in agent.log()


def test_ctrl_c_stops_in_order(site: Site) -> None:
    agent, place = site.agent, site.place()
    agent.start(*_LAZY)
    agent.done("mount", site.image.reference, str(place))
    assert agent.interrupt() == 130
    assert "Traceback" not in agent.log() and "ERROR" not in agent.log()
    caches.drop()
    assert (place / "srv/big").read_bytes() == _BIG


def test_a_tag_that_moved_is_mounted_as_it_is_now(site: Site) -> None:
    agent, place, later = site.agent, site.place(), site.place("later")
    agent.start(*_QUICK)
    agent.done("mount", site.image.reference, str(place))
    shutil.rmtree(site.directory.parent / "images/app")
    site.workshop.push("app", [LAYERS[0], LayerTar().add("etc/").add("etc/motd", b"news\n").bytes()])
    agent.done("mount", site.image.reference, str(later))
    assert (place / "etc/motd").read_bytes() == b"hello\n"
    assert (later / "etc/motd").read_bytes() == b"news\n"


def test_a_mount_that_a_user_undid_is_forgotten_at_the_next_start(site: Site) -> None:
    """As after a reboot: rows without mounts."""
    agent, place = site.agent, site.place()
    agent.start(*_QUICK)
    agent.done("mount", site.image.reference, str(place))
    subprocess.run(["umount", place], check=True)
    assert agent.stop() == 0
    agent.start(*_QUICK)
    assert agent.json("status")["mounts"] == []
    assert agent.mounts() == [agent.run / "view"]
    agent.done("mount", site.image.reference, str(place))


def test_many_layers_below_a_deep_root(site: Site, tmp_path: Path) -> None:
    """Their lower directories do not fit into one page of mount options."""
    layers = [LayerTar().add(f"f{number}", b"%d" % number).bytes() for number in range(40)]
    image = site.workshop.push("many", layers)
    place = site.place()
    agent = LocalAgent(tmp_path / "d", site.address, root=tmp_path / "d" / ("x" * 80) / ("y" * 80))
    try:
        agent.start(*_QUICK)
        agent.done("mount", "--rw", image.reference, str(place))
        assert {path.name: path.read_bytes() for path in place.iterdir()} == {f"f{n}": b"%d" % n for n in range(40)}
        (place / "new").write_bytes(b"new")
        agent.done("umount", str(place))
    finally:
        agent.close()


def test_an_agent_refuses_the_root_of_another(site: Site) -> None:
    site.agent.start(*_NOBODY)
    rival = LocalAgent(site.directory / "r", site.address, root=site.agent.root)
    try:
        with pytest.raises(ImgdistError, match="another agent uses it"):
            rival.start(*_NOBODY)
    finally:
        rival.close()
    assert site.agent.json("status")["lazy"] is True


def test_an_agent_outlives_its_supernode_and_finds_it_again_elsewhere(site: Site, tmp_path: Path) -> None:
    agent, place = site.agent, site.place()
    control, first, second = (f"127.0.0.1:{free_port()}" for _ in range(3))
    agent.start(*_LAZY, "--supernode", f"http://{control}")
    code, line = agent.refused("mount", site.image.reference, str(place))
    assert code == 1 and f"http://{control} does not answer" in line

    def supernode(chunks: str) -> Supernode:
        return Supernode(tmp_path / "s", control, plain_http=[site.address], flags=["--chunk-listen", chunks])

    with supernode(first):
        agent.done("mount", site.image.reference, str(place))
        assert agent.states()[site.big()] == "filling"
    with open(place / "srv/big", "rb") as file:
        reading = Thread(target=lambda: reads.append(file.read(1_000_000)))
        reads: list[bytes] = []
        reading.start()
        wait_until(lambda: agent.json("status")["reads_waiting"] > 0, "a read that waits", 10)
        with supernode(second):
            reading.join(30)
            assert reads == [_BIG[:1_000_000]]
            assert (place / "srv/big").read_bytes() == _BIG


def test_a_killed_part_comes_back_and_readers_see_nothing(site: Site) -> None:
    agent, place = site.agent, site.place()
    agent.start(*_LAZY)
    agent.done("mount", site.image.reference, str(place))
    with open(place / "srv/big", "rb") as file:
        for number, role in enumerate(("supernode", "view", "agent")):
            agent.kill_child(role)
            file.seek(number * 1_500_000)
            assert file.read(1_500_000) == _BIG[number * 1_500_000 : (number + 1) * 1_500_000], role
    wait_until(lambda: agent.imgdist("status").returncode == 0, "the agent's answer", 20)
    assert agent.json("status")["mounts"] == [str(place)]
    agent.done("umount", str(place))


def test_many_mounts_at_once(site: Site) -> None:
    agent = site.agent
    agent.start(*_LAZY)
    places = [site.place(f"m{number}") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda place: agent.done("mount", "--rw", site.image.reference, str(place)), places))
        assert {(place / "etc/motd").read_bytes() for place in places} == {b"hello\n"}
        assert len([mount for mount in agent.mounts() if mount.parent == agent.root / "l"]) == 3
        list(pool.map(lambda place: agent.done("umount", str(place)), places))
    wait_until(lambda: agent.mounts() == [agent.run / "view"] and not agent.loops(), "layers unmounted", 10)


def test_a_stop_does_not_wait_for_a_registry_that_hangs(site: Site) -> None:
    agent, place = site.agent, site.place()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        agent.start("--plain-http", address)
        mounting = pool.submit(agent.refused, "mount", f"{address}/app:1", str(place))
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            begun = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - begun < 8
        code, line = mounting.result()
    assert code == 1 and "the agent" in line
    assert "Traceback" not in agent.log()


def test_what_an_agent_cannot_start_for_is_one_line(site: Site) -> None:
    agent = site.agent
    (agent.root / "snapshots.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ImgdistError, match="exit 1"):
        agent.start(*_NOBODY)
    assert "the agent cannot go on: file is not a database" in agent.log()
    assert "Traceback" not in agent.log()
    assert agent.mounts() == [] and [path.name for path in agent.run.iterdir()] == ["view"]
