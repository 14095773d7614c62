"""The labels that tell a snapshotter which layer it is asked for. Pure.

Three families reach us (tried with containerd 1.6.20 and 2.4.2, nerdctl, stargz' ctr-remote): `snapshot.ref`
(the chain ID: always with CRI and the transfer service), `cri.*` (with a setting), `remote/stargz.*`. All are
hints from outside: image annotations with the prefix `containerd.io/snapshot/` arrive the same way, so nothing
that is read here may be trusted beyond finding a layer whose diff ID is then checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from imgdist.errors import UsageError

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""Chain ID of the layer that an extraction is for; a taken-over snapshot keeps it, containerd searches by it."""

DIFF_ID = "containerd.io/snapshot/diff-id"
PARENT_CHAIN_ID = "containerd.io/snapshot/parent-chain-id"
UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"

_CRI = "containerd.io/snapshot/cri."
_STARGZ = "containerd.io/snapshot/remote/stargz."
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAPPING = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})")
_NO_ID = 2**32 - 1


@dataclass(frozen=True)
class LayerSource:
    """Where a layer comes from, as far as the labels say."""

    reference: str
    layer_digest: str
    manifest_digest: str | None = None


def source(labels: Mapping[str, str]) -> LayerSource | None:
    """What the `cri.*` family says, else `remote/stargz.*`; None where neither names image and layer."""
    for prefix, reference, digest in ((_CRI, "image-ref", "layer-digest"), (_STARGZ, "reference", "digest")):
        name, layer = labels.get(prefix + reference, ""), labels.get(prefix + digest, "")
        if name and is_digest(layer):
            manifest = labels.get(prefix + "manifest-digest", "")
            return LayerSource(
                reference=name,
                layer_digest=layer,
                manifest_digest=manifest if is_digest(manifest) else None,
            )
    return None


def is_digest(text: str) -> bool:
    """True for "sha256:" and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def chain_id(parent_chain_id: str | None, diff_id: str) -> str:
    """The chain ID of a layer over its parent (OCI image spec, config.md, "Layer ChainID")."""
    if not parent_chain_id:
        return diff_id
    return "sha256:" + hashlib.sha256(f"{parent_chain_id} {diff_id}".encode()).hexdigest()


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Host uid and gid of the container's root, from the id-mapping labels; None where there are none.

    The labels hold `container:host:size` triples joined by commas. UsageError if they are malformed or do not map 0.
    """
    if UID_MAPPING not in labels and GID_MAPPING not in labels:
        return None
    return _host_id(labels.get(UID_MAPPING, ""), UID_MAPPING), _host_id(labels.get(GID_MAPPING, ""), GID_MAPPING)


def id_mapping(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The id-mapping labels as options of a mount that containerd makes; none where there are none."""
    options = ((UID_MAPPING, "uidmap"), (GID_MAPPING, "gidmap"))
    return tuple(f"{option}={labels[label]}" for label, option in options if label in labels)


def _host_id(mappings: str, label: str) -> int:
    if not mappings:
        return 0
    for mapping in mappings.split(","):
        match = _MAPPING.fullmatch(mapping)
        if match is None or any(int(number) >= _NO_ID for number in match.groups()):
            raise UsageError(f"label {label}: expected container:host:size below {_NO_ID}, found {mapping!r}")
        container, host, size = (int(number) for number in match.groups())
        if container == 0 and size > 0:
            return host
    raise UsageError(f"label {label}={mappings!r} maps no host id to the container's root")
