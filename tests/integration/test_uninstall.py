"""`imgdist install` and `imgdist uninstall` on a node with containers: they do not notice, whatever comes and goes."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.containerds import Containerd, Setting, Version
from rig.cri import Container
from rig.images import LayerTar, Pushed, Workshop, busybox_layer
from rig.stack import Stack, stack

from imgdist.demo import caches, leftovers
from imgdist.demo.agent import IMGDIST
from imgdist.demo.processes import wait_until

# Nothing is fetched but what is read: what outlives the agent, the uninstallation has fetched.
_LAZY = ("fill.mode=none", "trace.enabled=false", "switch.idle_s=0.1", "stop_timeout_s=1")
_DRAW = random.Random(7)
FILES = {f"data/{number:02}": _DRAW.randbytes(_DRAW.randrange(1, 400_000)) for number in range(40)}


class Machine:
    """A stack whose containerd has its configuration below a prefix, where `imgdist install` writes."""

    def __init__(self, made: Stack, prefix: Path) -> None:
        self.made, self.prefix = made, prefix
        settings = prefix / "etc/imgdist/agent.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text(f'root = "{made.node.root}"\nrun = "{made.node.run}"\nstop_timeout_s = 1.0\n')

    def imgdist(self, *words: str) -> subprocess.CompletedProcess[str]:
        place = ["--prefix", str(self.prefix), "--containerd-config", "/c/config.toml"]
        return subprocess.run([*IMGDIST, *words, *place], capture_output=True, text=True, timeout=120)

    def done(self, *words: str) -> dict[str, Any]:
        """The document of a command that must succeed."""
        ran = self.imgdist(*words, "--json")
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    def purge(self) -> None:
        """Until nothing of ROOT is left: loop devices go a moment after what was mounted from them."""

        def purged() -> bool:
            assert self.done("uninstall", "--purge")["broken"] == []
            return not self.made.node.root.exists()

        wait_until(purged, f"{self.made.node.root} deleted", 20)

    def processes(self) -> list[str]:
        """Command lines of what runs for this node."""
        found = leftovers.processes_below(self.made.node.run)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in found]

    def mounts(self) -> list[Path]:
        return leftovers.mounts_below(self.prefix.parent / "s" / "a")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with stack(tmp_path / "s", _LAZY) as made:
        yield Machine(made, tmp_path / "m")


def image(workshop: Workshop, name: str = "app") -> Pushed:
    layer = LayerTar().add("data/")
    for path, content in FILES.items():
        layer.add(path, content)
    return workshop.push(name, [busybox_layer(), layer.bytes()])


def reads_everything(container: Container) -> bool:
    said = container.run("/bin/sha256sum", *(f"/{path}" for path in FILES)).decode().splitlines()
    return [line.split()[0] for line in said] == [hashlib.sha256(content).hexdigest() for content in FILES.values()]


def restart(daemon: Containerd) -> None:
    daemon.stop()
    daemon.start()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", ["1.6", "2"])
def test_a_container_outlives_an_uninstallation(machine: Machine, tmp_path: Path, version: Version) -> None:
    made, app = machine.made, image(machine.made.workshop)
    daemon = made.containerd(Setting(version, is_told=False), place=machine.prefix / "c")
    before = daemon.config.read_bytes()
    machine.done("install", "--containerd", version[0])
    restart(daemon)
    with daemon.cri() as cri:
        cri.pull(app.reference)
        assert not any(daemon.holds_blob(blob) for blob in app.layer_digests), "pulled the ordinary way"
        pod = cri.run_pod("old", tmp_path / "logs")
        old = pod.start("old", app.reference, "/bin/sleep", "100000")
        assert [layer["state"] for layer in made.node.layers()].count("filling") == 1

        done = machine.done("uninstall", "--purge")

        assert machine.processes() == [], done
        assert machine.mounts() == [] and not made.node.run.exists()
        assert daemon.config.read_bytes() == before and list(daemon.config.parent.glob("conf.d/*")) == []
        assert done["broken"] == [] and done["next"] == ["restart containerd; containers that run go on"]
        kept = {one["path"]: one["reason"] for one in done["kept"]}
        assert any("/packs/" in path and "/dev/loop" in reason for path, reason in kept.items())
        caches.drop()
        assert reads_everything(old)

        restart(daemon)
        assert old.running() and reads_everything(old)
        plain = image(made.workshop, "later")
        for reference in (plain.reference, app.reference):
            cri.pull(reference)
            with cri.pod("new", tmp_path / "logs2") as later:
                assert reads_everything(later.start("new", reference, "/bin/sleep", "100000"))

        pod.remove()  # containerd needs no snapshotter for that
    machine.purge()


@pytest.mark.timeout(300)
def test_what_would_break_is_named_and_nothing_is_changed(machine: Machine, tmp_path: Path) -> None:
    made, app = machine.made, image(machine.made.workshop)
    daemon = made.containerd(Setting("2", is_told=False), place=machine.prefix / "c")
    machine.done("install", "--containerd", "2")
    restart(daemon)
    with daemon.cri() as cri:
        cri.pull(app.reference)
        with cri.pod("old", tmp_path / "logs") as pod:
            old = pod.start("old", app.reference, "/bin/sleep", "100000")
            made.go_offline()
            ran = machine.imgdist("uninstall", "--timeout", "2")
            assert ran.returncode == 1 and ran.stderr.count("\n") == 1
            assert f"container k8s.io/{old.id}" in ran.stderr and "--force" in ran.stderr
            assert made.node.layers() and list(daemon.config.parent.glob("conf.d/*")) != []
            made.start_registry()
            made.start_supernode()
            wait_until(lambda: machine.imgdist("uninstall", "--timeout", "20").returncode == 0, "a source again", 60)
            caches.drop()
            assert reads_everything(old)
            machine.done("install", "--containerd", "2")
            assert made.node.stop() == 0, "it ended in order"
            made.node.start()  # removing a container needs its snapshotter


@pytest.mark.timeout(300)
def test_an_agent_that_hangs_is_taken_away(machine: Machine, tmp_path: Path) -> None:
    """Holder, view and agent are stopped in the middle of a read: nothing of them answers any more."""
    made, app = machine.made, image(machine.made.workshop)
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run([*IMGDIST, "mount", app.reference, place, "--run", made.node.run], check=True)
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append((place / "data/07").read_bytes())
        except OSError as error:
            outcome.append(error.errno)

    with made.node.frozen():
        reader = threading.Thread(target=read)
        reader.start()
        ran = machine.imgdist("uninstall", "--timeout", "2")
        assert ran.returncode == 1 and str(place) in ran.stderr, ran.stderr
        assert reader.is_alive()
        done = machine.done("uninstall", "--force")
        reader.join(20)
    assert outcome and isinstance(outcome[0], int), "an error, at once, not for ever"
    assert any(str(place) in user for user in done["broken"])
    assert machine.processes() == [] and str(made.node.run / "view") not in map(str, machine.mounts())
    subprocess.run(["umount", place], check=True)
    machine.purge()
