"""The two calls of Kubernetes' CRI (runtime.v1) that the demo needs; containerd 1.6 pulls lazily only by CRI."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpclib.client
import grpclib.const
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError

from imgdist.errors import ImgdistError, TemporaryError


class _Bytes(CodecBase):
    """Messages as they are on the wire: ours have one field, so no generated code is worth it."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        assert isinstance(message, bytes)
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


def pull(socket: Path, reference: str, timeout_s: float = 300.0) -> None:
    """ImageService.PullImage. Raises ImgdistError with containerd's reason."""
    image_spec = _field(1, reference.encode())  # ImageSpec.image
    _call(socket, "/runtime.v1.ImageService/PullImage", _field(1, image_spec), timeout_s)


def status(socket: Path) -> None:
    """RuntimeService.Version: returns once CRI serves. Raises TemporaryError before."""
    _call(socket, "/runtime.v1.RuntimeService/Version", b"", 2.0)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field of less than 16 KiB."""
    assert len(value) < 1 << 14
    size = bytes([len(value) & 0x7F | 0x80, len(value) >> 7]) if len(value) > 0x7F else bytes([len(value)])
    return bytes([number << 3 | 2]) + size + value


def _call(socket: Path, method: str, request: bytes, timeout_s: float) -> bytes:
    async def call() -> bytes:
        channel = grpclib.client.Channel(path=str(socket), codec=_Bytes())
        try:
            async with channel.request(
                method, grpclib.const.Cardinality.UNARY_UNARY, bytes, bytes, timeout=timeout_s
            ) as stream:
                await stream.send_message(request, end=True)
                reply = await stream.recv_message()
                assert reply is not None
                return reply
        finally:
            channel.close()

    try:
        return asyncio.run(call())
    except GRPCError as error:
        raise ImgdistError(f"containerd: {method}: {error.status.name}: {error.message}") from None
    except (OSError, TimeoutError, StreamTerminatedError) as error:
        raise TemporaryError(f"containerd: {method} at {socket}: {error or type(error).__name__}") from None
