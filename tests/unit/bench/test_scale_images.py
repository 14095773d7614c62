"""Images made of numbers are what they are said to be."""

from __future__ import annotations

import tarfile
from pathlib import Path

from bench import scale_images
from bench.scale_images import BLOCK_BYTES, FILES_EACH, Numbers
from imgdist.demo.image import Image


def _names(image: Image) -> list[list[str]]:
    names = []
    for layer in image.layers:
        with tarfile.open(image.path(layer)) as tar:
            names.append(tar.getnames())
    return names


def test_numbers_are_the_same_in_any_pieces_and_differ_by_block() -> None:
    whole = Numbers("x").block(0) + Numbers("x").block(1)
    reader, read = Numbers("x"), b""
    while len(read) < len(whole):
        read += reader.read(100_000)
    assert read[: len(whole)] == whole and len(whole) == 2 * BLOCK_BYTES
    assert Numbers("x").block(0) != Numbers("x").block(1) != Numbers("y").block(1)


def test_the_squashed_twin_has_the_same_members(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")
    many, one = scale_images.of_layers(tmp_path, 3, busybox)
    assert (len(many.layers), len(one.layers)) == (3, 1)
    assert [name for names in _names(many) for name in names] == _names(one)[0]
    assert _names(many)[2] == ["n/002", *(f"n/002/{file:02}" for file in range(FILES_EACH))]


def test_many_files_begin_with_their_number(tmp_path: Path) -> None:
    image = scale_images.of_one_layer(tmp_path / "i", scale_images.many_files(1001, 20))
    with tarfile.open(image.path(image.layers[0])) as tar:
        last = tar.extractfile("001/000")
        assert last is not None and last.read() == b"00001000" + Numbers("many").block(0)[:12]
    empty = scale_images.of_one_layer(tmp_path / "e", scale_images.many_files(3, 0))
    with tarfile.open(empty.path(empty.layers[0])) as tar:
        assert [entry.size for entry in tar] == [0, 0, 0, 0]
