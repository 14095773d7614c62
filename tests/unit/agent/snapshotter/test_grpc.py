"""The service over a real socket, spoken to by grpclib's client."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from agent.snapshotter.core import Snapshotter
from agent.snapshotter.grpc import serve
from agent.snapshotter.proto import snapshots_pb2 as pb

REPLIES = {
    "Prepare": (pb.PrepareSnapshotRequest, pb.PrepareSnapshotResponse),
    "View": (pb.ViewSnapshotRequest, pb.ViewSnapshotResponse),
    "Mounts": (pb.MountsRequest, pb.MountsResponse),
    "Commit": (pb.CommitSnapshotRequest, Empty),
    "Remove": (pb.RemoveSnapshotRequest, Empty),
    "Stat": (pb.StatSnapshotRequest, pb.StatSnapshotResponse),
    "Update": (pb.UpdateSnapshotRequest, pb.UpdateSnapshotResponse),
    "Usage": (pb.UsageRequest, pb.UsageResponse),
    "Cleanup": (pb.CleanupRequest, Empty),
}


class Client:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __call__(self, name: str, /, **fields: Any) -> Any:
        request, reply = REPLIES[name]
        path = f"/containerd.services.snapshots.v1.Snapshots/{name}"
        return await UnaryUnaryMethod(self._channel, path, request, reply)(request(snapshotter="imgdist", **fields))

    async def list(self, *filters: str) -> list[Any]:
        path = "/containerd.services.snapshots.v1.Snapshots/List"
        method = UnaryStreamMethod(self._channel, path, pb.ListSnapshotsRequest, pb.ListSnapshotsResponse)
        return [info for reply in await method(pb.ListSnapshotsRequest(filters=filters)) for info in reply.info]


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    path = str(tmp_path / "s.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    core = Snapshotter(tmp_path / "root", None)
    server = await serve(core, listener)
    channel = Channel(path=path)
    yield Client(channel)
    channel.close()
    server.close()
    await server.wait_closed()
    core.close()


async def test_a_snapshots_life(client: Client) -> None:
    prepared = await client("Prepare", key="k", labels={"containerd.io/gc.root": "x"})
    assert [mount.type for mount in prepared.mounts] == ["bind"]
    assert (await client("Mounts", key="k")).mounts == prepared.mounts
    await client("Commit", name="c", key="k", labels={"a": "b"})
    info = (await client("Stat", key="c")).info
    assert (info.name, info.parent, info.kind, dict(info.labels)) == ("c", "", pb.COMMITTED, {"a": "b"})
    assert info.created_at.seconds > 1_700_000_000
    view = await client("View", key="v", parent="c")
    assert list(view.mounts[0].options) == ["ro", "rbind"]
    update = pb.UpdateSnapshotRequest(info=pb.Info(name="c", labels={"a": "2", "z": "3"}))
    update.update_mask.paths.append("labels.a")
    changed = await client("Update", info=update.info, update_mask=update.update_mask)
    assert dict(changed.info.labels) == {"a": "2"}
    assert (await client("Usage", key="c")).inodes == 1
    assert [info.name for info in await client.list("kind==view")] == ["v"]
    await client("Remove", key="v")
    await client("Remove", key="c")
    await client("Cleanup")
    assert await client.list() == []


async def test_long_lists_come_whole(client: Client) -> None:
    for number in range(205):
        await client("Prepare", key=f"k{number}")
    assert len(await client.list()) == 205


@pytest.mark.parametrize(
    ("call", "fields", "status"),
    [
        ("Prepare", {"key": "k"}, Status.ALREADY_EXISTS),
        ("Prepare", {"key": "x", "parent": "nowhere"}, Status.NOT_FOUND),
        ("Prepare", {"key": "x", "parent": "k"}, Status.INVALID_ARGUMENT),
        ("Prepare", {"key": ""}, Status.INVALID_ARGUMENT),
        ("Stat", {"key": "nowhere"}, Status.NOT_FOUND),
        ("Commit", {"key": "nowhere", "name": "n"}, Status.NOT_FOUND),
        ("Commit", {"key": "c", "name": "n"}, Status.FAILED_PRECONDITION),
        ("Mounts", {"key": "c"}, Status.FAILED_PRECONDITION),
        ("Remove", {"key": "c"}, Status.FAILED_PRECONDITION),
    ],
)
async def test_errors_have_the_status_that_containerd_expects(
    client: Client, call: str, fields: dict[str, str], status: Status
) -> None:
    await client("Prepare", key="first")
    await client("Commit", key="first", name="c")
    await client("Prepare", key="k", parent="c")
    with pytest.raises(GRPCError) as caught:
        await client(call, **fields)
    assert caught.value.status == status and caught.value.message


async def test_a_malformed_filter_is_an_invalid_argument(client: Client) -> None:
    with pytest.raises(GRPCError) as caught:
        await client.list("name=x")
    assert caught.value.status == Status.INVALID_ARGUMENT
