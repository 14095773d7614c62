"""containerd dies at the worst moments, and its containers come and go by the hundred: nothing is lost, nothing stays.

A part of it by default; all with `--matrix full`.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from rig import census
from rig.containerds import Containerd, Setting, Version
from rig.cri import Cri
from rig.images import LayerTar, Pushed, Workshop, busybox_layer
from rig.interposer import Interposer, Moment
from rig.stack import Stack, stack

from agent.snapshotter.proto import snapshots_pb2 as pb
from imgdist.demo.processes import wait_until

VERSIONS: tuple[Version, ...] = ("1.6", "2")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOMENTS: tuple[tuple[str, Moment], ...] = tuple(
    itertools.product(("Prepare", "Commit", "Remove"), ("asked", "answered"))  # type: ignore[arg-type]
)
_LATE_S = 0.5


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path / "s") as running:
        yield running


def lazy(workshop: Workshop, name: str) -> str:
    """Reference of an image of two layers, each taken over."""
    return workshop.push(name, [busybox_layer(), note(name)]).reference


def plain(workshop: Workshop, name: str) -> str:
    """Reference of an image that containerd unpacks itself: by this name its registry is nobody that a supernode was
    told to speak to without TLS."""
    return lazy(workshop, name).replace("127.0.0.1", "localhost")


def note(name: str) -> bytes:
    return LayerTar().add(f"{name}.txt", name.encode()).bytes()


def died_during(call: str, moment: Moment, daemon: Containerd, between: Interposer, image: str, number: int) -> None:
    """containerd dies of `number` while a call of it for `image` is at `moment`, and is started again."""

    def provoke() -> None:
        with suppress(grpc.RpcError), daemon.cri() as cri:
            cri.pull(image) if call != "Remove" else cri.remove_image(image)

    with between.holding(call, moment) as hold:
        client = threading.Thread(target=provoke)
        client.start()
        hold.wait()
        daemon.stop(number)
        client.join()
        hold.release()
    daemon.start()


def collect_garbage(daemon: Containerd) -> None:
    """As if the day had passed for which a client that died protects what it began, and time for a round with it."""
    daemon.ctr("leases", "create", "--id", "round", namespace="k8s.io")
    for lease in daemon.ctr("leases", "ls", "--quiet", namespace="k8s.io").split():
        daemon.ctr("leases", "rm", "--sync", lease, namespace="k8s.io")


def backend(made: Stack) -> set[str]:
    """Names of all snapshots that our side has."""
    with grpc.insecure_channel(f"unix://{made.node.snapshotter}") as channel:
        call = channel.unary_stream(
            "/containerd.services.snapshots.v1.Snapshots/List",
            request_serializer=pb.ListSnapshotsRequest.SerializeToString,
            response_deserializer=pb.ListSnapshotsResponse.FromString,
        )
        return {info.name for answer in call(pb.ListSnapshotsRequest()) for info in answer.info}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", VERSIONS)
def test_no_death_of_containerd_loses_an_image(
    made: Stack, tmp_path: Path, version: Version, pytestconfig: pytest.Config
) -> None:
    kept = lazy(made.workshop, "kept")
    full = pytestconfig.getoption("matrix", "quick") == "full"
    cases = [(call, moment, number) for call, moment in MOMENTS for number in SIGNALS]
    with Interposer(tmp_path / "i.sock", made.node.snapshotter) as between:
        daemon = made.containerd(Setting(version), tmp_path / "i.sock")
        with daemon.cri() as cri, cri.pod("first", tmp_path / "logs") as pod:
            cri.pull(kept)
            running = pod.start("running", kept, "/bin/sleep", "100000")
            listed, snapshots = cri.images(), {name for name in backend(made) if "sha256:" in name}

            for count, (call, moment, number) in enumerate(cases if full else cases[::4] + cases[3::4]):
                name, what = f"image{count}", f"{call} {moment}, {number.name}"
                image = (plain if call == "Commit" else lazy)(made.workshop, name)
                if call == "Remove":
                    cri.pull(image)
                died_during(call, moment, daemon, between, image, number)
                assert listed <= cri.images(), what
                assert running.run("/bin/cat", "/kept.txt") == b"kept", what
                cri.pull(image)
                assert cri.images() == listed | {image}, what
                new = pod.start(name, image, "/bin/sleep", "100000")
                assert new.run("/bin/cat", f"/{name}.txt") == name.encode(), what
                new.stop()
                cri.remove_image(image)
            collect_garbage(daemon)
            wait_until(
                lambda: {name for name in backend(made) if "sha256:" in name} == snapshots,
                f"the snapshots of dead clients collected; there are {backend(made) - snapshots}",
                20,
            )


def cri_images(daemon: Containerd) -> set[str]:
    with daemon.cri() as cri:
        return cri.images()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_agent_that_answers_late_costs_no_image(made: Stack, tmp_path: Path, version: Version) -> None:
    """The holder's socket takes containerd's connection, and nobody speaks on it for half a second."""
    image = made.workshop.push("kept", [busybox_layer()])
    daemon = made.containerd(Setting(version))
    with daemon.cri() as cri:
        cri.pull(image.reference)
        before = cri.images()
    for number in SIGNALS:
        daemon.stop(number)
        with made.node.frozen():
            daemon.launch()
            wait_until(lambda: is_connecting(made.node.snapshotter), "containerd's connection", 20)
            time.sleep(_LATE_S)
        daemon.wait_ready()
        assert image.reference in before and cri_images(daemon) == before


def is_connecting(socket: Path) -> bool:
    """Whether somebody waits to be accepted at a listening socket (/proc/net/unix: state 02 is SS_CONNECTING)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(line[-1] == str(socket) and line[5] == "02" for line in lines)


class Snapshots:
    """containerd's own snapshots service, as `ctr snapshots` uses it, without a process a call."""

    def __init__(self, daemon: Containerd) -> None:
        self._channel = grpc.insecure_channel(f"unix://{daemon.socket}")

    def cycle(self, key: str, parent: str) -> None:
        """A container's snapshot: made, its mounts asked for, removed."""
        rooted = {"containerd.io/gc.root": "now"}  # else a garbage collection that just runs may be faster than we
        self._call("Prepare", pb.PrepareSnapshotRequest(snapshotter="imgdist", key=key, parent=parent, labels=rooted))
        self._call("Mounts", pb.MountsRequest(snapshotter="imgdist", key=key))
        self._call("Remove", pb.RemoveSnapshotRequest(snapshotter="imgdist", key=key))

    def _call(self, method: str, request: pb.PrepareSnapshotRequest) -> None:
        call = self._channel.unary_unary(
            f"/containerd.services.snapshots.v1.Snapshots/{method}",
            request_serializer=type(request).SerializeToString,
        )
        call(request, metadata=[("containerd-namespace", "k8s.io")], timeout=30)

    def close(self) -> None:
        self._channel.close()


def containers(cri: Cri, logs: Path, image: Pushed, names: range) -> None:
    for number in names:
        with cri.pod(f"pod{number}", logs) as pod:
            container = pod.start("c", image.reference, "/bin/sleep", "100000")
            assert container.run("/bin/cat", "/word") == b"again\n"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_two_hundred_containers_leave_nothing(
    made: Stack, tmp_path: Path, version: Version, pytestconfig: pytest.Config
) -> None:
    real = 200 if pytestconfig.getoption("matrix", "quick") == "full" else 8
    image = made.workshop.push("cycled", [busybox_layer(), LayerTar().add("word", b"again\n").bytes()])
    daemon = made.containerd(Setting(version))
    snapshots = Snapshots(daemon)
    with daemon.cri() as cri:
        cri.pull(image.reference)
        made.node.wait_settled(2)
        containers(cri, tmp_path / "logs", image, range(2))
        snapshots.cycle("warm", image.chain_id)
        before = census.settled(tmp_path, made.node.root)

        containers(cri, tmp_path / "logs", image, range(2, 2 + real))
        for number in range(200):
            snapshots.cycle(f"cycle-{number}", image.chain_id)
        collect_garbage(daemon)

        assert census.grown(before, tmp_path, made.node.root) == []
    snapshots.close()
