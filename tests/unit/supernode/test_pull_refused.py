"""A client that its registry refuses gets no list, whatever word the registry refuses it with."""

from __future__ import annotations

from typing import Any

import pytest

from imgdist.distribution.request import Kind, Request
from imgdist.errors import NotFoundError
from imgdist.oci.access import Verdict
from imgdist.oci.reference import Reference
from supernode.registry.pullthrough import PullThrough
from supernode.upstream import Upstream


class Refusing:
    """An Authoriser whose registry hides what is private, as some do."""

    async def allowed(self, name: str, reference: str, authorization: str | None) -> Verdict:
        return Verdict(404, reason="hidden")


class Untouched:
    """Registries that nobody may ask."""

    def client(self, host: str) -> object:
        raise AssertionError(f"{host} was asked with our credentials for somebody who was refused")


@pytest.mark.parametrize("kind", [Kind.REFERRERS, Kind.TAGS])
async def test_not_found_is_a_refusal_too(kind: Kind) -> None:
    nothing: Any = None
    registries: Any = Untouched()
    upstream = Upstream(registries, nothing, nothing, nothing, nothing, nothing)
    registry = PullThrough(upstream, nothing, Refusing(), nothing, nothing)
    request = Request(kind, Reference("h.example", "a/private", digest="sha256:" + "1" * 64), "a/private")
    ask = registry.referrers if kind is Kind.REFERRERS else registry.tags
    with pytest.raises(NotFoundError, match="hidden"):
        await ask(request, [], None)
