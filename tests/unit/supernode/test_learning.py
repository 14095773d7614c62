"""What pulls teach, also of manifests that are made to do harm."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_registry import OCI_MANIFEST, FakeRegistry, tar_gz

from imgdist.oci.reference import Reference
from supernode.metrics import Metrics
from supernode.registries import CLIENTS_MAX
from supernode.registry.learning import Learning
from supernode.registry.reachable import Answering
from supernode.tracker.members import Census


class Failing:
    """A resolver with a fault."""

    async def image(self, reference: Reference, manifest: object) -> object:
        raise RuntimeError("a fault of ours")


class Empty:
    """A resolver that is not needed."""


def test_sizes_are_those_of_ones_own_manifests() -> None:
    registry = FakeRegistry()
    honest = registry.add_image([tar_gz({"a": b"1"})])
    layer = json.loads(registry.manifests[honest][1])["layers"][0]
    false = registry.manifests[honest][1].replace(b'"size": %d' % layer["size"], b'"size": 1')
    learning = Learning(Empty(), lambda origins: None)  # type: ignore[arg-type]
    learning.manifest(Reference("h.example", "x", digest=honest), OCI_MANIFEST, registry.manifests[honest][1])
    learning.manifest(Reference("evil.example", "x", digest=honest), OCI_MANIFEST, false)
    sizes = [learning.size(Reference(host, "x", digest=layer["digest"])) for host in ("h.example", "evil.example")]
    assert sizes == [layer["size"], 1]
    assert learning.size(Reference("h.example", "y", digest=layer["digest"])) is None


def test_hosts_that_clients_make_up_cost_no_memory() -> None:
    metrics = Metrics()
    answering = Answering(metrics)
    for number in range(CLIENTS_MAX + 1):
        answering.request(f"{number}.example", "200")
    assert not answering.lately("0.example") and answering.lately(f"{CLIENTS_MAX}.example")
    text = metrics.exposition({}, {}, Census(0, 0, 0)).decode()
    assert 'imgdist_registry_requests_total{registry="other",status="200"}' in text and '"999.example"' not in text
    assert 'registry="0.example"' in text


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
