"""Figures of a node beside those of its transfers: what its layers are like now, and reads that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import prometheus_client
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import imgdist
from agent.catalog import Layer
from agent.space.figures import frames_bytes
from fuse.channel import FAILURES


class LayerFigures(Collector):
    """Looks at the layers when it is asked. `layers()` is called on the thread that asks."""

    def __init__(self, layers: Callable[[], Sequence[Layer]]) -> None:
        self._layers = layers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As prometheus_client wants it."""
        layers = self._layers()
        states = Counter(layer.state.value for layer in layers)
        yield _gauge("imgdist_layers", "Layers by state", ["state"], (([state], n) for state, n in states.items()))
        waiting = sum(layer.store.present.parked for layer in layers if layer.shown)
        yield _gauge("imgdist_reads_waiting", "Reads of the view that wait for a chunk", [], [([], waiting)])
        incomplete = (layer.store for layer in layers if not layer.store.is_complete)
        ratios = (([store.pack_id.hex()], store.present.count() / store.present.blocks) for store in incomplete)
        yield _gauge("imgdist_layer_present_ratio", "Share of an incomplete layer that is here", ["layer"], ratios)
        taken = {
            "images": sum(layer.store.index.image_size for layer in layers),
            "frames": sum(frames_bytes(layer.store) for layer in layers),
        }
        rows = (([what], size) for what, size in taken.items())
        yield _gauge("imgdist_store_bytes", "Bytes taken on disk", ["what"], rows)
        yield _gauge("imgdist_build_info", "Always 1", ["version"], [([imgdist.__version__], 1)])


class FailedReads:
    """Counts reads that ended with EIO; one a process."""

    def __init__(self, registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY) -> None:
        self._failed = prometheus_client.Counter(
            "imgdist_reads_failed", "Reads of the view that got an I/O error", ["reason"], registry=registry
        )
        for reason in FAILURES:
            self._failed.labels(reason)  # from the start on, as 0: an increase can be alerted on

    def failed(self, reason: str, reads: int) -> None:
        """The view failed that many more reads for one of fuse.channel.FAILURES; its log names layers and offsets."""
        self._failed.labels(reason).inc(reads)


def _gauge(
    name: str, meaning: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
