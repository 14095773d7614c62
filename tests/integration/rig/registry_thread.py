"""A registry in a thread of its own, for suites that run programs and wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fake_registry import FakeRegistry, serving


@contextmanager
def registry_thread() -> Iterator[FakeRegistry]:
    """A `FakeRegistry` that serves; what it has may be changed from here."""
    registry, ready = FakeRegistry(), threading.Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serving(registry):
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield registry
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
