"""Which images this node has seen: ROOT/images/<manifest>.json, one small file an image, replaced atomically.

This is what lets a node answer for its layers with registry and supernode off: layer digest and chain ID -> pack id.
A cache, never synced: what a power cut takes is learnt again at the next pull, and so is what a full disk refuses.
Owner: the event loop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

log = logging.getLogger("imgdist.agent")

PACKLESS_MAX = 256
"""Images remembered none of whose layers is a pack, declined ones say: some MiB at most (a guess)."""


class KnownLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of an image; `pack_id` (hex) is None until its index was sealed, or for a declined layer."""

    digest: str
    media_type: str
    size_bytes: int
    diff_id: str
    chain_id: str
    pack_id: str | None = None


class KnownImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image of one platform, under the reference that it was last asked for by; its registry said at `confirmed_at`
    (seconds since 1970) that this is what the reference names."""

    reference: str
    name: str
    manifest_digest: str
    platform: str
    layers: tuple[KnownLayer, ...]
    confirmed_at: float | None = None
    rooted_in: tuple[str, ...] = ()


class KnownImages:
    """All images under `directory`, in memory and on disk."""

    def __init__(self, directory: Path, later: Callable[[Callable[[], None]], object] = lambda write: write()) -> None:
        """Read what is there; a file that makes no sense is set aside as *.bad. `later(write)` is to call `write`, soon
        but once for many layers: an image of 128 would be written 128 times. `flush` before the end."""
        self._directory = directory
        self._later = later
        self._unwritten: set[str] = set()
        self._images: dict[str, KnownImage] = {}
        self._packs: dict[str, str] = {}
        self._chains: dict[str, KnownLayer] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                self._remember(msgspec.json.decode(path.read_bytes(), type=KnownImage))
            except msgspec.DecodeError as error:
                log.error(
                    "%s: expected an image's record: %s; set aside as *.bad, the next pull renews it", path, error
                )
                path.replace(path.with_suffix(".bad"))

    def all(self) -> list[KnownImage]:
        """Every image, the last one added at the end."""
        return list(self._images.values())

    def get(self, manifest_digest: str) -> KnownImage | None:
        """The image of that platform manifest."""
        return self._images.get(manifest_digest)

    def add(self, image: KnownImage) -> None:
        """Record an image, keeping what is known already: pack ids, and what its layers were held against. Of those
        without packs the oldest are forgotten."""
        before = self._images.pop(image.manifest_digest, None)
        if before is not None and list(map(_named, before.layers)) == list(map(_named, image.layers)):
            image = msgspec.structs.replace(image, rooted_in=before.rooted_in)
        layers = tuple(
            layer if layer.pack_id else msgspec.structs.replace(layer, pack_id=self._packs.get(layer.digest))
            for layer in image.layers
        )
        self._write(msgspec.structs.replace(image, layers=layers))
        packless = [known for known in self.all() if not _packs(known)]
        if len(packless) > PACKLESS_MAX:
            self._forget(packless[:-PACKLESS_MAX])

    def sealed(self, layer_digest: str, pack_id: str) -> None:
        """A layer's pack id has become known; every image with that layer is told."""
        self._packs[layer_digest] = pack_id
        was_due = bool(self._unwritten)
        for image in self.all():
            if any(layer.digest == layer_digest and layer.pack_id != pack_id for layer in image.layers):
                layers = tuple(
                    msgspec.structs.replace(layer, pack_id=pack_id) if layer.digest == layer_digest else layer
                    for layer in image.layers
                )
                self._remember(msgspec.structs.replace(image, layers=layers))
                self._unwritten.add(image.manifest_digest)
        if self._unwritten and not was_due:
            self._later(self.flush)

    def flush(self) -> None:
        """Write down what `sealed` has told."""
        for digest in list(self._unwritten):
            if (image := self._images.get(digest)) is not None:
                self._write(image)
        self._unwritten.clear()

    def rooted(self, manifest_digest: str, digest: str) -> None:
        """The image's layers were held against the document of that digest."""
        image = self._images.get(manifest_digest)
        if image is not None and digest not in image.rooted_in:
            self._write(msgspec.structs.replace(image, rooted_in=(*image.rooted_in, digest)))

    def unseal(self, pack_id: str) -> None:
        """The pack is no layer's any more."""
        for digest in [digest for digest, pack in self._packs.items() if pack == pack_id]:
            del self._packs[digest]
        for image in self.with_pack(pack_id):
            layers = tuple(
                msgspec.structs.replace(layer, pack_id=None) if layer.pack_id == pack_id else layer
                for layer in image.layers
            )
            self._write(msgspec.structs.replace(image, layers=layers))

    def forget_without(self, pack_ids: Collection[str], spared: Collection[str] = ()) -> None:
        """Forget the images none of whose packs is among `pack_ids`, those on this node; never one without packs, nor
        those whose manifests are `spared`."""
        images = [image for image in self.all() if image.manifest_digest not in spared]
        self._forget([image for image in images if (packs := _packs(image)) and packs.isdisjoint(pack_ids)])

    def _forget(self, images: Collection[KnownImage]) -> None:
        for image in images:
            del self._images[image.manifest_digest]
        self._packs, self._chains = {}, {}
        for image in self.all():
            self._remember(image)
        for image in images:
            self._path(image).unlink(missing_ok=True)

    def layer_of_chain(self, chain_id: str) -> KnownLayer | None:
        """The layer that has this chain ID in some image."""
        return self._chains.get(chain_id)

    def pack_of(self, layer_digest: str) -> str | None:
        """The pack of a layer, by its compressed digest."""
        return self._packs.get(layer_digest)

    def with_pack(self, pack_id: str) -> list[KnownImage]:
        """Images that have a layer of this pack."""
        return [image for image in self.all() if any(layer.pack_id == pack_id for layer in image.layers)]

    def _write(self, image: KnownImage) -> None:
        path = self._path(image)
        temporary = path.with_suffix(".new")
        self._remember(image)
        try:
            temporary.write_bytes(msgspec.json.encode(image))
            os.replace(temporary, path)
        except OSError as error:
            log.warning("%s is not remembered over a restart: %s", image.reference, error)

    def _path(self, image: KnownImage) -> Path:
        return self._directory / f"{image.manifest_digest.removeprefix('sha256:')}.json"

    def _remember(self, image: KnownImage) -> None:
        self._images[image.manifest_digest] = image
        for layer in image.layers:
            self._chains[layer.chain_id] = layer
            if layer.pack_id:
                self._packs[layer.digest] = layer.pack_id


def _named(layer: KnownLayer) -> tuple[str, str, str]:
    return layer.digest, layer.diff_id, layer.chain_id


def _packs(image: KnownImage) -> set[str]:
    return {layer.pack_id for layer in image.layers if layer.pack_id}
