"""`imgdist drain`: afterwards nothing that runs needs the agent, or it says what does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import require_lazy_layers
from rig.images import LayerTar, Pushed, Workshop
from rig.local_agent import LocalAgent

from imgdist.demo import caches
from imgdist.demo.ports import free_port
from imgdist.demo.registry import registry

_BIG = random.Random(5).randbytes(6_000_000)
_LAZY = ("--set", "fill.mode=none", "--set", "trace.enabled=false")


class Site:
    """An agent that fetches nothing unread, an image of one large layer, a directory to mount it on."""

    def __init__(self, agent: LocalAgent, image: Pushed, place: Path) -> None:
        self.agent, self.image, self.place = agent, image, place
        place.mkdir()
        agent.start(*_LAZY)
        agent.done("mount", image.reference, str(place))
        assert agent.states() == {image.layer_digests[0]: "filling"}

    def drain(self, *flags: str) -> tuple[int, dict[str, object], str]:
        """Exit code, document, what it said on stderr."""
        ran = self.agent.imgdist("drain", "--json", *flags)
        return ran.returncode, json.loads(ran.stdout), ran.stderr.strip()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    require_lazy_layers()
    address = f"127.0.0.1:{free_port()}"
    with registry(tmp_path / "registry", address):
        layer = LayerTar().add("big", _BIG).bytes()
        image = Workshop(tmp_path / "images", address).push("app", [layer])
        agent = LocalAgent(tmp_path / "a", address)
        try:
            yield Site(agent, image, tmp_path / "a" / "m")
        finally:
            agent.close()
            print(agent.log()[-8000:])


def test_what_is_in_use_outlives_the_agent(site: Site) -> None:
    code, drained, said = site.drain()
    assert (code, drained, said) == (0, {"switched": 1, "left": []}, "")
    assert site.agent.states() == {site.image.layer_digests[0]: "switched"}
    site.agent.done("umount", str(site.place))
    site.agent.done("mount", site.image.reference, str(site.place))  # it went on serving
    site.agent.kill()
    caches.drop()
    assert (site.place / "big").read_bytes() == _BIG


def test_what_cannot_be_completed_is_named_with_its_user(site: Site) -> None:
    with site.agent.frozen("supernode"):
        code, drained, said = site.drain("--timeout", "1.5")
    (left,) = drained["left"]  # type: ignore[misc]
    assert (code, drained["switched"], left["digest"]) == (1, 0, site.image.layer_digests[0])
    assert left["used_by"] == [f"mount {site.place}"] and left["present_bytes"] < left["size_bytes"]
    assert f"in use by mount {site.place}" in said and said.count("\n") == 0
    assert site.drain()[0] == 0, "what stood in the way is gone"
