"""Figures of a node's layers, as Prometheus reads them."""

from __future__ import annotations

from typing import Any

from fake_node import FakeStore
from prometheus_client import CollectorRegistry, generate_latest

from agent.catalog import Layer, State
from agent.figures import FailedReads, LayerFigures
from fuse.channel import FAILURES


def exposed(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_layers_are_counted_as_they_are_now() -> None:
    layers: list[Layer] = []
    registry = CollectorRegistry()
    registry.register(LayerFigures(lambda: layers))
    assert "imgdist_reads_waiting 0.0" in exposed(registry)
    for number, state in ((5, State.FILLING), (6, State.SWITCHED), (7, State.FILLING)):
        store: Any = FakeStore(number)
        store.present.parked = number
        if state is State.SWITCHED:
            store.missing.clear()
        layers.append(Layer(store, state=state, shown=state is State.FILLING))
    lines = exposed(registry)
    assert 'imgdist_layers{state="filling"} 2.0' in lines and 'imgdist_layers{state="switched"} 1.0' in lines
    assert "imgdist_reads_waiting 12.0" in lines
    ratios = [line for line in lines if line.startswith("imgdist_layer_present_ratio")]
    assert ratios == [f'imgdist_layer_present_ratio{{layer="{pack * 32}"}} 0.5' for pack in ("05", "07")]
    (taken,) = (line.split()[1] for line in lines if line.startswith('imgdist_store_bytes{what="images"}'))
    assert float(taken) == sum(layer.store.index.image_size for layer in layers)
    assert any(line.startswith("imgdist_build_info{version=") for line in lines)


def test_reads_that_failed_are_counted_by_reason() -> None:
    registry = CollectorRegistry()
    failed = FailedReads(registry)
    failed.failed("deadline", 1)
    failed.failed("deadline", 2)
    failed.failed("image", 1)
    counted = [line for line in exposed(registry) if line.startswith("imgdist_reads_failed_total")]
    assert 'imgdist_reads_failed_total{reason="deadline"} 3.0' in counted
    assert 'imgdist_reads_failed_total{reason="image"} 1.0' in counted
    assert sum(float(line.split()[1]) for line in counted) == 4 and len(counted) == len(FAILURES)
