"""What was freed, as Prometheus reads it."""

from __future__ import annotations

import prometheus_client

from agent.frames import HEADER_SIZE
from agent.layerstore import LayerStore
from agent.space.policy import What


class SpaceFigures:
    """Counts what went; one a process."""

    def __init__(self, registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY) -> None:
        self._freed = prometheus_client.Counter(
            "imgdist_space_freed_bytes", "Bytes freed on disk, by what they were", ["what"], registry=registry
        )
        for what in What:
            self._freed.labels(what.value)

    def freed(self, what: What, size_bytes: int) -> None:
        """So many more are free."""
        self._freed.labels(what.value).inc(size_bytes)


def frames_bytes(store: LayerStore) -> int:
    """What a pack's kept bodies take; an empty file's header counts nothing."""
    size = store.frames.size_bytes if store.frames is not None else 0
    return size if size > HEADER_SIZE else 0
