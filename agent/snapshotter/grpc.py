"""containerd.services.snapshots.v1 over a listening unix socket: types converted and errors mapped, nothing else."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from agent.snapshotter.core import Snapshotter
from agent.snapshotter.model import AlreadyExistsError, Info, Kind, Mount, PreconditionError
from agent.snapshotter.proto import mount_pb2
from agent.snapshotter.proto import snapshots_pb2 as pb
from agent.snapshotter.server import SnapshotsServer
from imgdist.errors import ImgdistError, NotFoundError, TemporaryError, UnsupportedError, UsageError

log = logging.getLogger("imgdist.snapshotter")

_SERVICE = "containerd.services.snapshots.v1.Snapshots"
_LIST_BATCH = 100  # as containerd's own service: a long list does not become one huge message
_STATUS: tuple[tuple[type[ImgdistError], Status], ...] = (
    (AlreadyExistsError, Status.ALREADY_EXISTS),
    (NotFoundError, Status.NOT_FOUND),
    (PreconditionError, Status.FAILED_PRECONDITION),
    (UnsupportedError, Status.FAILED_PRECONDITION),
    (UsageError, Status.INVALID_ARGUMENT),
    (TemporaryError, Status.UNAVAILABLE),
)

_Stream = Stream[Any, Any]
_Method = Callable[[_Stream], Coroutine[Any, Any, None]]


async def serve(snapshotter: Snapshotter, listener: socket.socket) -> SnapshotsServer:
    """Answer containerd on a socket that listens already. To stop: `server.close()`, `await server.wait_closed()`."""
    server = SnapshotsServer([SnapshotsService(snapshotter)])
    await server.start(sock=listener)
    return server


class SnapshotsService:
    """grpclib's view of the snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._core = snapshotter

    def __mapping__(self) -> dict[str, Handler]:
        unary = Cardinality.UNARY_UNARY
        methods: tuple[tuple[str, _Method, Cardinality, type, type], ...] = (
            ("Prepare", self._prepare, unary, pb.PrepareSnapshotRequest, pb.PrepareSnapshotResponse),
            ("View", self._view, unary, pb.ViewSnapshotRequest, pb.ViewSnapshotResponse),
            ("Mounts", self._mounts, unary, pb.MountsRequest, pb.MountsResponse),
            ("Commit", self._commit, unary, pb.CommitSnapshotRequest, Empty),
            ("Remove", self._remove, unary, pb.RemoveSnapshotRequest, Empty),
            ("Stat", self._stat, unary, pb.StatSnapshotRequest, pb.StatSnapshotResponse),
            ("Update", self._update, unary, pb.UpdateSnapshotRequest, pb.UpdateSnapshotResponse),
            ("List", self._list, Cardinality.UNARY_STREAM, pb.ListSnapshotsRequest, pb.ListSnapshotsResponse),
            ("Usage", self._usage, unary, pb.UsageRequest, pb.UsageResponse),
            ("Cleanup", self._cleanup, unary, pb.CleanupRequest, Empty),
        )
        return {
            f"/{_SERVICE}/{name}": Handler(_translated(name, method), cardinality, request, reply)
            for name, method, cardinality, request, reply in methods
        }

    async def _prepare(self, stream: _Stream) -> None:
        request = await _request(stream)
        remaining_s = stream.deadline.time_remaining() if stream.deadline else None
        found = await self._core.prepare(request.key, request.parent, dict(request.labels), remaining_s)
        await stream.send_message(pb.PrepareSnapshotResponse(mounts=_to_mounts(found)))

    async def _view(self, stream: _Stream) -> None:
        request = await _request(stream)
        found = await self._core.view(request.key, request.parent, dict(request.labels))
        await stream.send_message(pb.ViewSnapshotResponse(mounts=_to_mounts(found)))

    async def _mounts(self, stream: _Stream) -> None:
        request = await _request(stream)
        await stream.send_message(pb.MountsResponse(mounts=_to_mounts(await self._core.mounts(request.key))))

    async def _commit(self, stream: _Stream) -> None:
        request = await _request(stream)
        await self._core.commit(request.name, request.key, dict(request.labels), request.parent)
        await stream.send_message(Empty())

    async def _remove(self, stream: _Stream) -> None:
        await self._core.remove((await _request(stream)).key)
        await stream.send_message(Empty())

    async def _stat(self, stream: _Stream) -> None:
        info = await self._core.stat((await _request(stream)).key)
        await stream.send_message(pb.StatSnapshotResponse(info=_to_info(info)))

    async def _update(self, stream: _Stream) -> None:
        request = await _request(stream)
        wanted = Info(request.info.name, request.info.parent, Kind.COMMITTED, 0, 0, dict(request.info.labels))
        info = await self._core.update(wanted, list(request.update_mask.paths))
        await stream.send_message(pb.UpdateSnapshotResponse(info=_to_info(info)))

    async def _list(self, stream: _Stream) -> None:
        infos = await self._core.walk(list((await _request(stream)).filters))
        for start in range(0, len(infos), _LIST_BATCH):
            batch = [_to_info(info) for info in infos[start : start + _LIST_BATCH]]
            await stream.send_message(pb.ListSnapshotsResponse(info=batch))

    async def _usage(self, stream: _Stream) -> None:
        used = await self._core.usage((await _request(stream)).key)
        await stream.send_message(pb.UsageResponse(size=used.size_bytes, inodes=used.inodes))

    async def _cleanup(self, stream: _Stream) -> None:
        await _request(stream)
        await self._core.cleanup()
        await stream.send_message(Empty())


async def _request(stream: _Stream) -> Any:
    request = await stream.recv_message()
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call has no request message")
    return request


def _translated(name: str, method: _Method) -> _Method:
    """The one place where errors become gRPC statuses."""

    async def call(stream: _Stream) -> None:
        try:
            await method(stream)
        except GRPCError:
            raise
        except Exception as error:
            raise GRPCError(_status(name, error), str(error)) from error

    return call


def _status(name: str, error: Exception) -> Status:
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    log.exception("%s failed", name)
    return Status.INTERNAL


def _to_mounts(found: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in found]


def _to_info(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=int(info.kind),
        created_at=_to_timestamp(info.created_ns),
        updated_at=_to_timestamp(info.updated_ns),
        labels=info.labels,
    )


def _to_timestamp(time_ns: int) -> Timestamp:
    seconds, nanos = divmod(time_ns, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
