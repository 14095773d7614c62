"""What a node remembers of images, across restarts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.known_images import PACKLESS_MAX, KnownImage, KnownImages, KnownLayer


def _layer(number: int) -> KnownLayer:
    digest = f"sha256:{number:064x}"
    return KnownLayer(digest=digest, media_type="tar", size_bytes=1, diff_id=digest, chain_id=f"sha256:c{number:063x}")


def _image(number: int, *layers: KnownLayer) -> KnownImage:
    return KnownImage(
        reference=f"host/image:{number}",
        name="host/image",
        manifest_digest=f"sha256:f{number:063x}",
        platform="linux/amd64",
        layers=layers,
    )


def test_a_seal_reaches_every_image_with_the_layer_and_survives_a_restart(tmp_path: Path) -> None:
    known = KnownImages(tmp_path)
    known.add(_image(1, _layer(1), _layer(2)))
    known.add(_image(2, _layer(1), _layer(3)))
    known.sealed(_layer(1).digest, "ab" * 32)
    for state in (known, KnownImages(tmp_path)):
        assert state.pack_of(_layer(1).digest) == "ab" * 32
        assert state.pack_of(_layer(2).digest) is None
        assert len(state.with_pack("ab" * 32)) == 2
        found = state.layer_of_chain(_layer(1).chain_id)
        assert found is not None and found.pack_id == "ab" * 32


def test_images_without_packs_are_not_remembered_for_ever(tmp_path: Path) -> None:
    known = KnownImages(tmp_path)
    known.add(_image(0, _layer(0)))
    known.sealed(_layer(0).digest, "ab" * 32)
    for number in range(1, PACKLESS_MAX + 1):
        known.add(_image(number, _layer(number)))
    known.add(_image(1, _layer(1)))
    known.add(_image(PACKLESS_MAX + 1, _layer(PACKLESS_MAX + 1)))
    for number in (0, 1, 3, PACKLESS_MAX + 1):
        assert known.get(_image(number).manifest_digest) is not None
    assert known.get(_image(2).manifest_digest) is None
    assert known.layer_of_chain(_layer(2).chain_id) is None
    assert len(list(tmp_path.iterdir())) == PACKLESS_MAX + 1


def test_seals_are_written_once_for_many_layers(tmp_path: Path) -> None:
    due: list[Callable[[], None]] = []
    known = KnownImages(tmp_path, due.append)
    known.add(_image(1, _layer(1), _layer(2)))
    for number in (1, 2):
        known.sealed(_layer(number).digest, f"{number:064x}")
    assert len(due) == 1 and known.pack_of(_layer(2).digest) == f"{2:064x}"
    assert KnownImages(tmp_path).pack_of(_layer(1).digest) is None
    due.pop()()
    assert KnownImages(tmp_path).with_pack(f"{1:064x}") == known.with_pack(f"{2:064x}")

    known.add(_image(2, _layer(3)))
    known.sealed(_layer(3).digest, f"{3:064x}")
    known.forget_without([f"{1:064x}"])
    due.pop()()
    assert [image.reference for image in KnownImages(tmp_path).all()] == ["host/image:1"]


def test_adding_an_image_again_keeps_its_pack_ids(tmp_path: Path) -> None:
    known = KnownImages(tmp_path)
    known.add(_image(1, _layer(1)))
    known.sealed(_layer(1).digest, "cd" * 32)
    known.add(_image(1, _layer(1)))
    assert known.all()[0].layers[0].pack_id == "cd" * 32


def test_of_an_image_without_packs_here_nothing_is_left_but_what_others_share(tmp_path: Path) -> None:
    known = KnownImages(tmp_path)
    known.add(_image(1, _layer(1), _layer(2)))
    known.add(_image(2, _layer(2), _layer(3)))
    for number in (1, 2, 3):
        known.sealed(_layer(number).digest, f"{number:064x}")
    known.forget_without([f"{3:064x}"])
    assert [image.reference for image in known.all()] == ["host/image:2"]
    assert (known.pack_of(_layer(1).digest), known.layer_of_chain(_layer(1).chain_id)) == (None, None)
    assert [known.pack_of(_layer(number).digest) for number in (2, 3)] == [f"{2:064x}", f"{3:064x}"]
    found = known.layer_of_chain(_layer(2).chain_id)
    assert found is not None and found.pack_id == f"{2:064x}"


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\0" * 4096])
def test_a_damaged_record_is_set_aside_and_the_others_are_kept(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    known = KnownImages(tmp_path)
    known.add(_image(1, _layer(1)))
    known.add(_image(2, _layer(2)))
    path = next(tmp_path.glob("*1.json"))
    path.write_bytes(damage)
    again = KnownImages(tmp_path)
    assert again.all() == [_image(2, _layer(2))]
    assert str(path) in caplog.text and path.with_suffix(".bad").read_bytes() == damage
    again.add(_image(1, _layer(1)))
    assert len(KnownImages(tmp_path).all()) == 2


def test_the_event_loop_waits_for_no_disk_and_a_full_one_fails_no_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = KnownImages(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "fdatasync", "sync"):
        monkeypatch.setattr(os, name, refuse)
    known.add(_image(1, _layer(1)))
    assert caplog.text == ""
    monkeypatch.setattr(os, "replace", refuse)
    known.add(_image(2, _layer(2)))
    assert len(known.all()) == 2 and "No space left" in caplog.text
    assert [image.reference for image in KnownImages(tmp_path).all()] == ["host/image:1"]


def test_a_pack_that_is_no_layers_any_more(tmp_path: Path) -> None:
    known = KnownImages(tmp_path)
    known.add(_image(1, _layer(1), _layer(2)))
    known.sealed(_layer(1).digest, "11" * 32)
    known.sealed(_layer(2).digest, "22" * 32)
    known.unseal("11" * 32)
    for read in (known, KnownImages(tmp_path)):
        assert [one.pack_id for one in read.all()[0].layers] == [None, "22" * 32]
        assert read.pack_of(_layer(1).digest) is None
        assert read.with_pack("11" * 32) == []
        chained = read.layer_of_chain(_layer(1).chain_id)
        assert chained is not None and chained.pack_id is None
