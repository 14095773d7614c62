"""Images of ours: deterministic, and what they say about themselves is true."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from parts import require

from imgdist.demo.image import EPOCH_S, Image, ImageWriter, add_file, load_image, tiny_image
from imgdist.demo.tree import add_tree


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """Any file will do where nothing is run."""
    file = tmp_path / "busybox"
    file.write_bytes(b"\x7fELF" + bytes(range(256)) * 64)
    return file


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, busybox: Path) -> None:
    first, second = tiny_image(tmp_path / "a", busybox), tiny_image(tmp_path / "b", busybox)
    assert first.manifest == second.manifest
    assert first.layers == second.layers


def test_every_blob_is_what_its_name_says(tmp_path: Path, busybox: Path) -> None:
    image = tiny_image(tmp_path / "a", busybox)
    for blob in (image.manifest, image.config, *image.layers):
        content = image.path(blob).read_bytes()
        assert blob.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert blob.size_bytes == len(content)


def test_diff_ids_are_of_the_uncompressed_layers(tmp_path: Path, busybox: Path) -> None:
    image = tiny_image(tmp_path / "a", busybox)
    config = json.loads(image.path(image.config).read_bytes())
    plain = [gzip.decompress(image.path(layer).read_bytes()) for layer in image.layers]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in plain]


def test_a_layout_is_loaded_as_it_was_written(tmp_path: Path, busybox: Path) -> None:
    written = tiny_image(tmp_path / "a", busybox)
    assert load_image(tmp_path / "a") == written
    assert written.layers_bytes == sum(written.path(layer).stat().st_size for layer in written.layers)


def test_a_mark_changes_the_manifest_and_nothing_else(tmp_path: Path, busybox: Path) -> None:
    image = tiny_image(tmp_path / "a", busybox)
    plain, marked = json.loads(image.manifest_bytes()), json.loads(image.manifest_bytes("two"))
    assert image.manifest_bytes() == image.path(image.manifest).read_bytes()
    assert marked.pop("annotations") and marked == plain


def test_the_configuration_says_when_it_was_built(tmp_path: Path) -> None:
    image = ImageWriter(tmp_path / "image", built_s=EPOCH_S + 86_400).finish(command=["true"])
    assert json.loads(image.path(image.config).read_bytes())["created"] == "2026-01-02T00:00:00Z"


def _layer(tmp_path: Path, top: Path, **options: Any) -> tuple[Image, list[tarfile.TarInfo]]:
    writer = ImageWriter(tmp_path / f"image{len(list(tmp_path.iterdir()))}")
    blob = writer.add_layer("test", lambda tar: add_tree(tar, top, **options))
    image = writer.finish(command=["true"])
    with tarfile.open(image.path(blob)) as tar:
        return image, tar.getmembers()


def test_a_tree_becomes_members_in_byte_order_with_old_times(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "b").mkdir(parents=True)
    (top / "b" / "x").write_text("x")
    (top / "b-a").write_text("between b and b/x by characters, not by components")
    (top / "a").symlink_to("b/x")
    os.link(top / "b" / "x", top / "b" / "y")
    _, members = _layer(tmp_path, top)
    assert [member.name for member in members] == ["a", "b", "b/x", "b/y", "b-a"]
    by_name = {member.name: member for member in members}
    assert by_name["a"].linkname == "b/x" and by_name["a"].issym()
    assert by_name["b/y"].islnk() and by_name["b/y"].linkname == "b/x"
    assert all(member.mtime <= 1_767_225_600 and not member.uname for member in members)


def test_built_later_a_tree_is_another_layer_with_the_same_old_files(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    for name, time_s in (("old", EPOCH_S - 5), ("new", EPOCH_S + 99)):
        (top / name).write_text(name)
        os.utime(top / name, (time_s, time_s))
    _, members = _layer(tmp_path, top, built_s=EPOCH_S + 10)
    assert {member.name: member.mtime for member in members} == {"old": EPOCH_S - 5, "new": EPOCH_S + 10}


def test_what_is_left_out_keeps_its_directory(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "var/cache").mkdir(parents=True)
    (top / "var/cache/big").write_text("big")
    (top / "var/log").write_text("log")
    _, members = _layer(tmp_path, top, leave_out=frozenset({"var/cache", "var/log"}))
    assert [member.name for member in members] == ["var", "var/cache"]


def test_overlay_whiteouts_become_oci_ones(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root")
    top = tmp_path / "tree"
    (top / "opaque").mkdir(parents=True)
    os.mknod(top / "gone", 0o020000, os.makedev(0, 0))
    os.mknod(top / "opaque" / "too", 0o020000, os.makedev(0, 0))
    os.setxattr(top / "opaque", "trusted.overlay.opaque", b"y")
    _, members = _layer(tmp_path, top)
    assert [member.name for member in members] == [".wh.gone", "opaque", "opaque/.wh..wh..opq", "opaque/.wh.too"]
    assert all("trusted" not in key for member in members for key in member.pax_headers)


def test_whatever_fill_adds_is_counted_once(tmp_path: Path) -> None:
    writer = ImageWriter(tmp_path / "image")
    blob = writer.add_layer("one file", lambda tar: add_file(tar, "hello", b"world", 0o600))
    image = writer.finish(command=["true"], environment=["A=b"])
    with tarfile.open(image.path(blob)) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None and content.read() == b"world"
        assert member.mode == 0o600
    config = json.loads(image.path(image.config).read_bytes())
    assert config["config"]["Env"] == ["A=b"]
