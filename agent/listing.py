"""What the API tells of a node's layers and images, a row each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.catalog import Catalog, Layer, State
from agent.earlystore import EarlyStore
from agent.images import Images
from agent.known_images import KnownImage, KnownLayer
from agent.mirror.seen import SeenTag
from agent.proving.prover import Prover
from agent.revocations import Revocations
from agent.withdrawal import Withdrawal
from imgdist.pack import BLOCK
from imgdist.pack.kinds import Kind


@dataclass(frozen=True, slots=True)
class Trust:
    """Who knows which packs are what their layers convert to."""

    prover: Prover
    withdrawal: Withdrawal
    revocations: Revocations

    def of(self, layer: Layer) -> dict[str, Any]:
        """Whether the pack was proved here; why it is revoked, if it is, and who is built on it then."""
        reason = self.revocations.reason(layer.pack_id)
        proven = {"proven": self.prover.is_proven(layer), "revoked": reason}
        return proven if reason is None else {**proven, "used_by": self.withdrawal.used_by.get(layer.pack_id, [])}

    def revoked(self, layers: Iterable[Layer]) -> list[str]:
        """The packs of those that are revoked."""
        return [layer.pack_id for layer in layers if self.revocations.reason(layer.pack_id) is not None]


class Listing:
    """Reads what others keep; all calls come from the event loop."""

    def __init__(self, catalog: Catalog, images: Images, trust: Trust) -> None:
        self._catalog = catalog
        self._images = images
        self._trust = trust

    def layers(self) -> list[dict[str, Any]]:
        """Every layer known here, also those that were declined or are being indexed, each once."""
        present = self._catalog.all()
        rows = [{**row, **self._trust.of(layer)} for layer, row in zip(present, self.rows(present), strict=True)]
        openings = self._images.openings
        rows += [
            {**_absent(layer, State.INDEXING), **_early(openings.early.of(layer.digest))}
            for layer in openings.indexing.values()
        ]
        here = {row["digest"] for row in rows}
        return rows + [
            {**_absent(plain.layer, State.PLAIN), "reason": plain.reason}
            for plain in openings.plain.values()
            if plain.layer.digest not in here
        ]

    def rows(self, layers: Iterable[Layer]) -> list[dict[str, Any]]:
        """Of layers that are here, in their order."""
        digests = {layer.pack_id: layer.digest for image in self._images.known.all() for layer in image.layers}
        return [_present(layer, digests.get(layer.pack_id)) for layer in layers]

    def images(self, tags: Mapping[str, SeenTag]) -> list[dict[str, Any]]:
        """Images that layers were taken over of, then `tags` that clients pulled the ordinary way."""
        rest, now, rows = dict(tags), time.time(), []
        for image in self._images.known.all():
            seen = rest.pop(image.reference, None)
            confirmed = [at for at in (image.confirmed_at, seen and seen.confirmed_at) if at is not None]
            rows.append({**self._image(image), "age_s": round(now - max(confirmed)) if confirmed else None})
        return rows + pulled(rest)

    def _image(self, image: KnownImage) -> dict[str, Any]:
        found = [self._catalog.get(layer.pack_id or "") for layer in image.layers]
        present = [layer for layer in found if layer is not None]
        return {
            "reference": image.reference,
            "name": image.name,
            "manifest_digest": image.manifest_digest,
            "platform": image.platform,
            "layers": [layer.digest for layer in image.layers],
            "size_bytes": sum(layer.store.index.image_size for layer in present),
            "present_bytes": sum(layer.store.present.count() * BLOCK for layer in present),
            "revoked": self._trust.revoked(present),
            "complete": len(present) == len(found) and all(layer.store.is_complete for layer in present),
            "sources": dict(sum((layer.store.received for layer in present), Counter())),
        }


def _present(layer: Layer, digest: str | None) -> dict[str, Any]:
    store = layer.store
    is_layer = store.index.kind is Kind.LAYER
    return {
        "digest": digest if is_layer else store.index.layer_digest,
        "kind": store.index.kind.name.lower(),
        "diff_id": store.index.diff_id if is_layer else None,
        "pack_id": layer.pack_id,
        "state": layer.state.value,
        "size_bytes": store.index.image_size,
        "present_bytes": store.present.count() * BLOCK,
        "sources": dict(store.received),
    }


def _absent(layer: KnownLayer, state: State) -> dict[str, Any]:
    """A layer without an image here; `size_bytes` is what the registry has, compressed."""
    return {
        "digest": layer.digest,
        "kind": "layer",
        "diff_id": layer.diff_id,
        "pack_id": None,
        "state": state.value,
        "size_bytes": layer.size_bytes,
        "present_bytes": 0,
        "sources": {},
    }


def _early(store: EarlyStore | None) -> dict[str, Any]:
    """What has come of a layer before its seal."""
    return {} if store is None else {"present_bytes": store.size_bytes, "sources": dict(store.received)}


def pulled(tags: Mapping[str, SeenTag]) -> list[dict[str, Any]]:
    """Tags that were pulled through the mirror: what became of them only the clients know."""
    now = time.time()
    return [
        {
            "reference": reference,
            "name": reference.rpartition(":")[0],
            "manifest_digest": seen.digest,
            "platform": None,
            "layers": [],
            "size_bytes": 0,
            "present_bytes": 0,
            "complete": False,
            "sources": {},
            "revoked": [],
            "age_s": round(now - seen.confirmed_at),
        }
        for reference, seen in tags.items()
    ]
