"""The chain table outlives a restart; the last twin rules."""

from __future__ import annotations

from pathlib import Path

from imgdist.wire.control import Chain
from supernode.catalog import Catalog
from supernode.chains import Chains
from supernode.database import Database


def chain(number: int, layer: str) -> Chain:
    return Chain(f"sha256:{number:064x}", layer, "sha256:d", "docker.io/library/x", "sha256:m", "linux/amd64")


async def test_chains_outlive_a_restart(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    await Chains(database).keep([chain(1, "a"), chain(2, "b")])
    await Chains(database).keep([chain(2, "twin")])
    database.close()
    database = Database(tmp_path / "db")
    try:
        chains = Chains(database)
        assert await chains.find(chain(1, "").chain_id) == chain(1, "a")
        assert await chains.find(chain(2, "").chain_id) == chain(2, "twin")
        assert await chains.find("sha256:none") is None
    finally:
        database.close()


async def test_catalog(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    try:
        catalog = Catalog(database)
        assert await catalog.document("d") is None
        await catalog.keep_document("d", "type", b"\0raw")
        assert await catalog.document("d") == ("type", b"\0raw")
        await catalog.keep_tag("n", "t", "d1", 1.0)
        await catalog.keep_tag("n", "t", "d2", 2.0)
        assert await catalog.tag("n", "t") == ("d2", 2.0)
        assert await catalog.tag("n", "other") is None
        await catalog.keep_declined("l", "why")
        assert await catalog.declined() == {"l": "why"}
    finally:
        database.close()
