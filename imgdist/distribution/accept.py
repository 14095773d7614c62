"""Accept headers for manifests (RFC 9110 section 12.5.1), as far as registries heed them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from imgdist.oci.manifest import INDEX_TYPES, MANIFEST_TYPES

EVERYTHING = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES, "*/*"))
"""What is asked of a registry so that the answer does for every client: a tag's manifest as it was pushed."""


def accepts(headers: Sequence[str], media_type: str) -> bool:
    """Whether a client takes that type: no header at all takes everything. Weights only rule out with q=0."""
    offers = [part.strip().lower() for header in headers for part in header.split(",") if part.strip()]
    return not offers or any(_matches(offer, media_type.lower()) for offer in offers)


def _matches(offer: str, media_type: str) -> bool:
    pattern, _, parameters = offer.partition(";")
    if any(word.strip() in ("q=0", "q=0.0", "q=0.00", "q=0.000") for word in parameters.split(";")):
        return False
    kind, _, sub = pattern.strip().partition("/")
    wanted_kind, _, wanted_sub = media_type.partition(";")[0].strip().partition("/")
    return kind in ("*", wanted_kind) and sub in ("*", wanted_sub)
