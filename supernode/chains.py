"""The table chain ID -> layer: how a node knows a layer when containerd tells it nothing but the chain ID."""

from __future__ import annotations

from collections.abc import Sequence

from imgdist.wire.control import Chain
from supernode.database import Database


class Chains:
    """The table, filled whenever an image is resolved. Of twins (equal chain ID) the last one seen rules."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(self, chains: Sequence[Chain]) -> None:
        """Remember an image's chain IDs."""
        rows = [(c.chain_id, c.layer_digest, c.diff_id, c.name, c.manifest_digest, c.platform) for c in chains]
        await self._database.write("INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?, ?)", *rows)

    async def find(self, chain_id: str) -> Chain | None:
        """The layer that a chain ID ends with."""
        row = await self._database.call(
            lambda db: db.execute("SELECT * FROM chains WHERE chain_id = ?", (chain_id,)).fetchone()
        )
        return Chain(*row) if row else None
