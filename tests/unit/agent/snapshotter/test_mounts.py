"""Against what containerd's overlay.go returns."""

from __future__ import annotations

from agent.snapshotter.model import Kind, Mount
from agent.snapshotter.mounts import Place, mounts

PLACE = Place("/r/7/fs", "/r/7/work")


def test_without_a_parent_its_own_directory_is_bound() -> None:
    assert mounts(Kind.ACTIVE, PLACE, [], separate_file_systems=False) == [Mount("bind", "/r/7/fs", ("rw", "rbind"))]
    assert mounts(Kind.VIEW, PLACE, [], separate_file_systems=False) == [Mount("bind", "/r/7/fs", ("ro", "rbind"))]


def test_a_view_of_one_directory_is_a_read_only_bind_of_it() -> None:
    assert mounts(Kind.VIEW, PLACE, ["/l/0"], separate_file_systems=True) == [Mount("bind", "/l/0", ("ro", "rbind"))]


def test_active_over_plain_layers_is_what_overlayfs_returns() -> None:
    (found,) = mounts(
        Kind.ACTIVE, PLACE, ["/r/2/fs", "/r/1/fs"], separate_file_systems=False, overlay_options=("index=off",)
    )
    options = ("workdir=/r/7/work", "upperdir=/r/7/fs", "lowerdir=/r/2/fs:/r/1/fs", "index=off")
    assert found == Mount("overlay", "overlay", options)


def test_layers_that_are_file_systems_get_xino() -> None:
    (found,) = mounts(Kind.VIEW, PLACE, ["/l/1", "/l/0"], separate_file_systems=True, overlay_options=("index=off",))
    assert found == Mount("overlay", "overlay", ("lowerdir=/l/1:/l/0", "index=off", "xino=on"))


def test_mapped_ids_are_told_to_who_mounts() -> None:
    mapping = ("uidmap=0:100000:65536", "gidmap=0:100000:65536")
    (found,) = mounts(Kind.ACTIVE, PLACE, ["/l/0"], separate_file_systems=True, id_mapping=mapping)
    options = (*mapping, "workdir=/r/7/work", "upperdir=/r/7/fs", "lowerdir=/l/0", "xino=on")
    assert found == Mount("overlay", "overlay", options)
    (bind,) = mounts(Kind.ACTIVE, PLACE, [], separate_file_systems=False, id_mapping=mapping)
    assert bind == Mount("bind", "/r/7/fs", (*mapping, "rw", "rbind"))
