"""Between containerd and its snapshotter: calls are passed on; one that a test names is held at its worst moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc

Moment = Literal["asked", "answered"]
"""Held before the snapshotter hears of the call, or after it has answered and before the client knows."""

_HOLD_S = 60.0
_FOR_EVER_S = 86_400.0


class Hold:
    """One call that waits."""

    def __init__(self, method: str, moment: Moment) -> None:
        self.method, self.moment = method, moment
        self._reached, self._released = threading.Event(), threading.Event()

    def wait(self) -> None:
        """Until a call has come to that moment; there it stays."""
        assert self._reached.wait(_HOLD_S), f"no {self.method} of containerd within {_HOLD_S:g} s"

    def release(self) -> None:
        self._released.set()

    def stay(self) -> None:
        self._reached.set()
        self._released.wait(_HOLD_S)


class Interposer(grpc.GenericRpcHandler):
    """Listens on the unix socket `front`, passes on to the snapshotter at `back`; a context manager."""

    def __init__(self, front: Path, back: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{back}")
        self._hold: Hold | None = None
        self.calls: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(32), handlers=[self])
        self._server.add_insecure_port(f"unix://{front}")
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold is not None:
            self._hold.release()
        self._server.stop(5).wait()
        self._channel.close()

    @contextmanager
    def holding(self, method: str, moment: Moment) -> Iterator[Hold]:
        """The next call of `method` ("Prepare") is held at `moment`, until released or the block ends."""
        self._hold = hold = Hold(method, moment)
        try:
            yield hold
        finally:
            self._hold = None
            hold.release()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        path = details.method
        name = path.rpartition("/")[2]
        if name == "List":
            return grpc.unary_stream_rpc_method_handler(lambda request, context: self._stream(path, request, context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._unary(path, name, request, context))

    def _unary(self, path: str, name: str, request: bytes, context: grpc.ServicerContext) -> Any:
        self.calls.append(name)
        hold = self._hold
        if hold is None or hold.method != name:
            return self._passed_on(self._channel.unary_unary(path), request, context)
        self._hold = None
        if hold.moment == "asked":
            hold.stay()
        try:
            return self._passed_on(self._channel.unary_unary(path), request, context)
        finally:
            if hold.moment == "answered":
                hold.stay()

    def _stream(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        call = self._channel.unary_stream(path)
        yield from self._passed_on(lambda *words, **named: list(call(*words, **named)), request, context)

    def _passed_on(self, call: Callable[..., Any], request: bytes, context: grpc.ServicerContext) -> Any:
        metadata = [(key, value) for key, value in context.invocation_metadata() if key.startswith("containerd-")]
        remaining_s = context.time_remaining()
        timeout_s = remaining_s if remaining_s < _FOR_EVER_S else None  # 9e18 where there is no deadline
        try:
            return call(request, metadata=metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
