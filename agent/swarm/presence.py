"""The layers of this node, as the swarm sees them: what neighbours are told, what they are served."""

from __future__ import annotations

import asyncio

from agent.layerstore import LayerStore
from agent.swarm.bitset import bits_of
from agent.swarm.mesh import Mesh
from agent.swarm.swarms import full
from imgdist.pack import FORMAT_VERSION


class Presence:
    """On the event loop; `find` is called by any thread. Looking at what is present runs as work of `tasks`."""

    def __init__(self, mesh: Mesh, tasks: asyncio.TaskGroup) -> None:
        self._mesh = mesh
        self._tasks = tasks
        self._by_name: dict[str, LayerStore] = {}

    def find(self, name: str) -> LayerStore | None:
        """The layer that the wire calls so: a pack id in hex, or the name from before the seal."""
        return self._by_name.get(name)

    def show(self, store: LayerStore) -> None:
        """This node has, or takes, the chunks of a layer; what is present is proven. Again: nothing changes."""
        pack = store.pack_id.hex()
        if pack in self._by_name:
            return
        layer = layer_name(store)
        self._by_name.update({name: store for name in (pack, layer) if name})
        self._mesh.opening(store.node)
        self._tasks.create_task(self._open(store, layer, pack))

    async def _open(self, store: LayerStore, layer: str, pack: str) -> None:
        bits = await asyncio.to_thread(_present, store)
        self._mesh.open(store.node, layer, pack, store.index.chunk_count, bits)


def layer_name(store: LayerStore) -> str:
    """What the layer was called before its seal; "" if its index does not say."""
    digest = store.index.layer_digest
    return f"{digest.replace(':', '-', 1)}-v{FORMAT_VERSION}" if digest else ""


def _present(store: LayerStore) -> int:
    with store.use() as usable:
        if not usable:
            return 0
        every = full(store.index.chunk_count)
        return every if store.is_complete else every ^ bits_of(store.missing_chunks())
