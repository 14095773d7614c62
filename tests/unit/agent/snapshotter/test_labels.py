from __future__ import annotations

import hashlib

import pytest

from agent.snapshotter import labels
from imgdist.errors import UsageError

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def test_cri_labels_name_image_and_layer() -> None:
    found = labels.source(
        {
            "containerd.io/snapshot.ref": A,
            "containerd.io/snapshot/cri.image-ref": "registry.example/app:1",
            "containerd.io/snapshot/cri.layer-digest": B,
            "containerd.io/snapshot/cri.image-layers": f"{B},{C},sha256:cut",
            "containerd.io/snapshot/cri.manifest-digest": C,
        }
    )
    assert found == labels.LayerSource("registry.example/app:1", B, C)


def test_stargz_labels_are_the_second_family() -> None:
    prefix = "containerd.io/snapshot/remote/stargz."
    found = labels.source({prefix + "reference": "r/app:1", prefix + "digest": A, prefix + "layers": A})
    assert found == labels.LayerSource("r/app:1", A, None)


@pytest.mark.parametrize("digest", ["", "sha256:short", "md5:" + "a" * 64, "sha256:" + "A" * 64])
def test_without_a_real_digest_there_is_no_source(digest: str) -> None:
    cri = "containerd.io/snapshot/cri."
    assert labels.source({cri + "image-ref": "r", cri + "layer-digest": digest}) is None


def test_chain_id_as_the_image_specification_computes_it() -> None:
    assert labels.chain_id(None, A) == A
    assert labels.chain_id(A, B) == "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()


def test_the_mapped_root_is_where_container_id_zero_lies() -> None:
    assert labels.mapped_root({}) is None
    both = {labels.UID_MAPPING: "1:5:1,0:100000:65536", labels.GID_MAPPING: "0:200000:65536"}
    assert labels.mapped_root(both) == (100000, 200000)
    assert labels.mapped_root({labels.UID_MAPPING: "0:7:1"}) == (7, 0)


@pytest.mark.parametrize("mapping", ["x", "0:1", "1:5:10", "0:5:0", "0:4294967295:1", "0:-1:5"])
def test_a_mapping_that_maps_nothing_is_refused(mapping: str) -> None:
    with pytest.raises(UsageError, match="uidmapping"):
        labels.mapped_root({labels.UID_MAPPING: mapping})
