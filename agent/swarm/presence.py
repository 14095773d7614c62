"""The layers of this node, as the swarm sees them: what neighbours are told, what they are served."""

from __future__ import annotations

import asyncio

from agent.earlystore import EarlyStore
from agent.layerstore import LayerStore
from agent.swarm.bitset import bits_of
from agent.swarm.mesh import Mesh
from agent.swarm.swarms import full


class Presence:
    """On the event loop; `find` is called by any thread. Looking at what is present runs as work of `tasks`."""

    def __init__(self, mesh: Mesh, tasks: asyncio.TaskGroup) -> None:
        self._mesh = mesh
        self._tasks = tasks
        self._by_name: dict[str, LayerStore | EarlyStore] = {}

    def find(self, name: str) -> LayerStore | EarlyStore | None:
        """The layer that the wire calls so: a pack id in hex, or the name from before the seal."""
        return self._by_name.get(name)

    def show(self, store: LayerStore) -> None:
        """This node has, or takes, the chunks of a layer; what is present is proven. Again: nothing changes."""
        pack = store.pack_id.hex()
        if pack in self._by_name:
            return
        layer = store.index.early_name or ""
        before = self._by_name.get(layer)
        self._by_name.update({name: store for name in (pack, layer) if name})
        if isinstance(before, EarlyStore):
            count = store.index.chunk_count
            self._mesh.sealed(before.node, store.node, pack, count, bits_of(before.landed_of(store.index)))
        else:
            self._mesh.opening(store.node)
            self._tasks.create_task(self._open(store, layer, pack))

    def hide(self, store: LayerStore) -> None:
        """This node gives the layer up: nobody is told of it or served any more."""
        self._by_name = {name: other for name, other in self._by_name.items() if other is not store}
        self._mesh.close(store.node)

    def begin(self, early: EarlyStore) -> None:
        """This node takes the chunks of a layer that has no seal yet; `show` says when it has."""
        self._by_name[early.name] = early
        self._mesh.open(early.node, early.name, "", 0, 0)

    def end(self, early: EarlyStore) -> None:
        """That store is being closed, sealed or not."""
        if self._by_name.get(early.name) is early:
            del self._by_name[early.name]
        self._mesh.close(early.node)

    async def _open(self, store: LayerStore, layer: str, pack: str) -> None:
        bits = await asyncio.to_thread(_present, store)
        self._mesh.open(store.node, layer, pack, store.index.chunk_count, bits)
        if self._by_name.get(pack) is not store:  # hidden meanwhile
            self._mesh.close(store.node)


def _present(store: LayerStore) -> int:
    with store.use() as usable:
        if not usable:
            return 0
        every = full(store.index.chunk_count)
        return every if store.is_complete else every ^ bits_of(store.missing_chunks())
