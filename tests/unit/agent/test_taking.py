"""Layers of this node as the snapshotter asks for them: a revoked pack is mounted for nobody where that is to block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_node import FakeStore

from agent.layer import Layer
from agent.taking import NodeLayers
from imgdist.errors import DeniedError


async def test_what_is_refused_is_not_mounted() -> None:
    store: Any = FakeStore(5)
    layer, refused = Layer(store), dict[str, str]()
    mounted: list[str] = []

    async def ensure_mounted(pack_id: str) -> str:
        mounted.append(pack_id)
        return "/l/5"

    catalog: Any = SimpleNamespace(
        get=lambda pack_id: layer, ensure_mounted=ensure_mounted, mounted_at=lambda pack_id: "/l/5"
    )
    images: Any = SimpleNamespace()
    layers = NodeLayers(images, catalog, refused=refused.get)
    assert await layers.ensure_mounted(layer.pack_id) == layers.mounted_at(layer.pack_id) == "/l/5"
    refused[layer.pack_id] = "it lies"
    with pytest.raises(DeniedError, match=r"revoked and verify\.action is block: it lies; pull the image again"):
        await layers.ensure_mounted(layer.pack_id)
    assert mounted == [layer.pack_id] and layers.mounted_at(layer.pack_id) is None
