"""`require_agreement`: a layer's pack is what several supernodes name, independently of each other.

Conversion depends on the layer alone, so that two honest supernodes name the same pack. Each reads the layer from the
registry for itself: this costs the registry as many reads as supernodes are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from agent.supernode_client import SupernodeClient
from imgdist.errors import CorruptError, ImgdistError, NotFoundError, TemporaryError

Named = tuple[str, str | ImgdistError]
"""(URL of a supernode, the pack id in hex that it names, or why it names none)."""


class DisagreementError(CorruptError):
    """Supernodes name different packs for one layer: `pack_ids`. At least one of them is wrong."""

    def __init__(self, message: str, pack_ids: Sequence[str]) -> None:
        super().__init__(message)
        self.pack_ids = pack_ids


def agreed(layer_digest: str, named: Iterable[Named], count: int) -> str:
    """The pack id that `count` supernodes name.

    Raises DisagreementError if any two differ, TemporaryError if fewer than `count` name one.
    """
    packs = [(url, pack) for url, pack in named if isinstance(pack, str)]
    for url, pack in packs:
        if pack != packs[0][1]:
            raise DisagreementError(
                f"layer {layer_digest}: the supernode at {packs[0][0]} names pack {packs[0][1]}, the one at {url} names"
                f" {pack}; expected the same of {count} (require_agreement): one lies, or is of another release",
                [packs[0][1], pack],
            )
    if len(packs) < count:
        errors = "; ".join(str(error) for _, error in named if not isinstance(error, str))
        raise TemporaryError(
            f"layer {layer_digest}: {len(packs)} of {count} supernodes name a pack (require_agreement): {errors}"
        )
    return packs[0][1]


async def ask_all(
    clients: Sequence[SupernodeClient],
    layer_digest: str,
    reference: str,
    platform: str,
    manifest_digest: str,
    count: int,
) -> list[Named]:
    """What the first `count` supernodes that can say so name as the layer's pack, once they have converted it; and why
    others cannot."""

    async def ask(client: SupernodeClient) -> Named:
        try:
            return client.url, await _name(client, layer_digest, reference, platform, manifest_digest)
        except ImgdistError as error:
            return client.url, error

    asking = [asyncio.create_task(ask(client)) for client in clients]
    named: list[Named] = []
    try:
        for answer in asyncio.as_completed(asking):
            named.append(await answer)
            if sum(isinstance(pack, str) for _, pack in named) == count:
                break
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return named


async def _name(client: SupernodeClient, layer_digest: str, reference: str, platform: str, manifest_digest: str) -> str:
    """Of one supernode, which converts the layer first if it has to."""
    try:
        status = await client.layer(layer_digest)
    except NotFoundError:
        status = None
    if status is not None and status.pack_id is not None:
        return status.pack_id
    if status is None or status.state != "converting":
        await client.resolve(reference, platform=platform, manifest_digest=manifest_digest)
    index, _ = await client.follow_index(layer_digest)
    return index.pack_id.hex()
