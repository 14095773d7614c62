"""A conversion worker that takes more than it may: it ends, with a reason, and the next one works."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_registry import digest_of
from hostile_layers import named, zipped
from raw_tar import header

from imgdist.errors import DeclinedError
from imgdist.limits import DEFAULT_LIMITS, Limits
from supernode.convert.conversion import Conversion
from supernode.convert.worker import cpu_allowed_s
from supernode.convert.workers import Workers
from supernode.store import LocalStore

_FREE = 1 << 40


def _directories(count: int) -> bytes:
    """So many directories with a file each: some 20 us of CPU and 800 bytes of memory, of 20 bytes of layer."""
    return zipped(named(header(), (b"%d/f" % number for number in range(count))))


async def _convert(store: LocalStore, workers: Workers, layer: bytes, limits: Limits) -> None:
    async with Conversion(store, workers, digest_of(layer), limits=limits) as conversion:
        for at in range(0, len(layer), 65_536):
            await conversion.feed(layer[at : at + 65_536])
        await conversion.finish()


@pytest.mark.parametrize(
    ("limits", "count", "words"),
    [
        (Limits(memory_bytes=48 << 20, metadata_bytes=_FREE), 80_000, "48 MiB of memory"),
        (Limits(cpu_s=1), 150_000, "CPU time"),
        (Limits(metadata_bytes=1 << 20), 10_000, "1048576 bytes of memory"),
    ],
)
async def test_too_much_is_declined_and_leaves_nothing(
    store: LocalStore, workers: Workers, tmp_path: Path, limits: Limits, count: int, words: str
) -> None:
    with pytest.raises(DeclinedError, match=words):
        await _convert(store, workers, _directories(count), limits)
    assert list((tmp_path / "store" / "packs").iterdir()) == []
    await _convert(store, workers, zipped([header(b"f")]), DEFAULT_LIMITS)


def test_cpu_time_grows_with_what_was_received_and_with_the_level() -> None:
    limits = Limits(cpu_s=30)
    assert cpu_allowed_s(0, 1, limits) == 30
    assert cpu_allowed_s(10 << 20, 1, limits) == 40
    assert cpu_allowed_s(10 << 20, 19, limits) == 220
