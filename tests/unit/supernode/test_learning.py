"""What pulls teach, also of manifests that are made to do harm."""

from __future__ import annotations

import asyncio

import pytest
from fake_registry import OCI_MANIFEST, FakeRegistry, tar_gz

from imgdist.oci.reference import Reference
from supernode.registry.learning import Learning


class Failing:
    """A resolver with a fault."""

    async def image(self, reference: Reference, manifest: object) -> object:
        raise RuntimeError("a fault of ours")


async def test_an_image_that_cannot_be_learnt_of_does_not_end_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    registry = FakeRegistry()
    digest = registry.add_image([tar_gz({"a": b"1"})])
    learning = Learning(Failing(), lambda origins: None)  # type: ignore[arg-type]
    running = asyncio.create_task(learning.run())
    await asyncio.sleep(0)  # it begins
    reference = Reference("h.example", "x", digest=digest)
    document = learning.manifest(reference, OCI_MANIFEST, registry.manifests[digest][1])
    config = next(iter(learning._reading))
    async with asyncio.timeout(10):
        await learning.settled(config)
    await asyncio.sleep(0)
    assert document is not None and not running.done() and "failed" in caplog.text
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
