"""A node for tests: real stores on disk, a fake view, and the transfers that a test makes of them."""

from __future__ import annotations

from pathlib import Path

from made_layers import FakeView
from prometheus_client import CollectorRegistry

from agent.chunkstore import ChunkStore
from agent.database import Database
from agent.transfer.transfers import Transfers


class StoredNode:
    """To be subclassed: who does sets `transfers`. `slots` are the view's ring, `spared` its
    threads; `keep_frames` as ChunkStore has it."""

    transfers: Transfers

    def __init__(self, root: Path, *, slots: int = 4, spared: int = 0, keep_frames: bool = False) -> None:
        self.database = Database(root / "agent.db")
        self.chunks = ChunkStore(root / "packs", self.database, keep_frames=keep_frames)
        self.view = FakeView(slots, spared)
        self.registry = CollectorRegistry()

    def figure(self, name: str, **labels: str) -> float:
        """A figure of the transfers; 0 before there is one."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def stop(self) -> None:
        self.transfers.stop()
        self.chunks.close()
        self.database.close()
