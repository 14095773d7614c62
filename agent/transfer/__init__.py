"""How a layer's bytes come onto this node: what to fetch next (policy), from whom, and landing it verified."""

from __future__ import annotations

from agent.transfer.sources import ChunkSource
from agent.transfer.transfers import Transfers

__all__ = ["ChunkSource", "Transfers"]
