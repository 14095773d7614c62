"""This node's part in the swarm, put together: the port that others use, the mesh, the membership, the figures."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from agent.earlystore import EarlyStore
from agent.layerstore import LayerStore
from agent.supernode_chunks import SupernodeChunks
from agent.swarm.identity import identity
from agent.swarm.membership import Membership
from agent.swarm.mesh import Mesh
from agent.swarm.neighbours import SourceKind, SourceRow
from agent.swarm.presence import Presence
from agent.swarm.relay import Relay
from agent.swarm.shelf import Shelf
from agent.transfer.sources import ChunkSource
from agent.transfer.transfers import Transfers
from imgdist.config import AgentConfig
from imgdist.wire import mesh as wire
from imgdist.wire import tracker
from imgdist.wire.clusterkey import ClusterKey
from imgdist.wire.messages import Priority
from imgdist.wire.ratelimit import RateLimit
from imgdist.wire.server import ChunkServer
from imgdist.wire.slots import BUSY_AFTER_S
from imgdist.wire.tracker import Peer, Revocation, Share

_STOP_S = 1.0


class Station:
    """Made on the event loop. `listener` is the port for other agents; `supernodes` are told where that is.
    `connect(address)` makes a source of another agent, None if it must not be asked."""

    def __init__(
        self,
        config: AgentConfig,
        listener: socket.socket,
        transfers: Transfers,
        supernodes: Sequence[SupernodeChunks],
        connect: Callable[[str], ChunkSource | None],
        tasks: asyncio.TaskGroup,
        key: ClusterKey | None = None,
        registry: CollectorRegistry = REGISTRY,
        *,
        revoked: Callable[[str, Iterable[Revocation]], None] = lambda by, packs: None,
    ) -> None:
        """`revoked(by, packs)`: the supernode at `by` has revoked packs."""
        me = identity(Path(config.root), config.zone, config.peer_advertise, listener)
        self.node = me.node
        self._transfers = transfers
        self._supernodes = supernodes
        self._tasks = tasks
        self._revoked = revoked
        self._membership = Membership(me, config.supernode, key=key)
        self._mesh = Mesh(me, transfers, connect, self._membership, limit=config.swarm.neighbours, key=key)
        self._presence = Presence(self._mesh, tasks)
        self._shelf = Shelf(self._presence.find, transfers.expects)
        hello = tracker.encode(tracker.Hello(me.node, wire.VERSION, wire.VERSION))
        limit = config.swarm.up_bytes_per_s
        self._server = ChunkServer(
            self._shelf,
            [listener],
            _uploads(registry),
            on_mesh=self._mesh.accept,
            hello=lambda: hello,
            up_limit=RateLimit(limit) if limit else None,
            busy_after_s=BUSY_AFTER_S,
            seeder=Relay(lambda: self._mesh.address, self._shelf.has),
            key=key,
        )
        transfers.listen(self._shelf.arrived)
        transfers.listen(self._mesh.here)
        self.advertise(me.address)
        members = Gauge("imgdist_swarm_members", "Agents that this one is connected with", registry=registry)
        members.set_function(lambda: len(self._mesh))

    def start(self) -> None:
        """Serve others and look for them, as work of the daemon's task group."""
        self._server.start()
        self._tasks.create_task(self._mesh.run())
        self._tasks.create_task(self._membership.run(self))

    async def close(self) -> None:
        """Serve nobody any more."""
        await asyncio.to_thread(self._server.stop, _STOP_S)

    def show(self, store: LayerStore) -> None:
        """This node has, or takes, the chunks of a layer; what is present is proven. Again: nothing changes."""
        self._presence.show(store)

    def hide(self, store: LayerStore) -> None:
        """This node gives the layer up."""
        self._presence.hide(store)
        self._shelf.forget(store.node)

    def sharing(self, store: LayerStore) -> list[str]:
        """The ids of neighbours that have, or take, chunks of the layer, too."""
        return self._mesh.sharing(store.node)

    def served_at(self, node: int) -> float | None:
        """When another agent last asked for chunks of a layer (seconds of the monotonic clock)."""
        return self._shelf.served_at(node)

    def begin(self, early: EarlyStore) -> None:
        """This node takes the chunks of a layer that has no seal yet. Once it has one, `show` it, then `end` this."""
        self._presence.begin(early)

    def end(self, early: EarlyStore) -> None:
        """That store is being closed."""
        self._presence.end(early)
        self._shelf.forget(early.node)

    # What the membership asks and tells (membership.Swarm).

    @property
    def lacks(self) -> bool:
        """As membership.Swarm."""
        return self._mesh.lacks

    def revoked(self, by: str, packs: Iterable[Revocation]) -> None:
        """As membership.Swarm."""
        self._revoked(by, packs)

    def shares(self) -> list[Share]:
        """As membership.Swarm."""
        return self._mesh.shares()

    def learn(self, peers: Iterable[Peer]) -> None:
        """As membership.Swarm."""
        self._mesh.learn(peers)

    def advertise(self, address: str) -> None:
        """As membership.Swarm."""
        self._mesh.advertise(address)
        for supernode in self._supernodes:
            supernode.node = address

    # For people.

    def status(self) -> dict[str, Any]:
        """Of `imgdist status`."""
        return {
            "node": self.node,
            "address": self._mesh.address or None,
            "tracker": self._membership.joined,
            "reachable": self._membership.reachable,
            "neighbours": len(self._mesh),
        }

    def peers(self) -> list[dict[str, Any]]:
        """Of `imgdist peers`: every agent that this one is connected with, and every supernode."""
        measured = {(row.kind, row.source): _measured(row) for row in self._transfers.sources_rows()}
        rows = [
            {**row, "kind": "peer", **measured.get((SourceKind.PEER, row["address"]), _UNMEASURED)}
            for row in self._mesh.rows()
        ]
        for (kind, name), figures in measured.items():
            if kind is SourceKind.SUPERNODE:
                rows.append({**dict.fromkeys(_OF_A_PEER), "kind": "supernode", "address": name, **figures})
        return rows


_OF_A_PEER = ("node", "name", "address", "zone", "opened", "connected_s", "swarms", "gives", "takes")


def _measured(row: SourceRow) -> dict[str, Any]:
    return {
        "state": row.state,
        "round_trip_ms": None if row.round_trip_s is None else round(row.round_trip_s * 1e3, 2),
        "received_bytes": row.received_bytes,
        "rate_bytes_per_s": None if row.rate_bytes_per_s is None else round(row.rate_bytes_per_s),
        "failures": row.failures,
        "lies": row.lies,
    }


_UNMEASURED: dict[str, Any] = {
    "state": "unreachable",
    "round_trip_ms": None,
    "received_bytes": 0,
    "rate_bytes_per_s": None,
    "failures": 0,
    "lies": 0,
}


def _uploads(registry: CollectorRegistry) -> Any:
    sent = Counter(
        "imgdist_upload_bytes", "Chunk bytes sent to other agents, by kind of request", ["kind"], registry=registry
    )
    by_priority = {priority: sent.labels(priority.value) for priority in Priority}
    return lambda priority, size_bytes: by_priority[priority].inc(size_bytes)
