"""How long a registry's word about a tag stands."""

from __future__ import annotations

import math

from imgdist.oci.reference import parse
from supernode.freshness import Freshness, age_s


def test_the_first_rule_that_fits_counts() -> None:
    rules = Freshness(60, 600, (("docker.io/library/*:latest", 10), ("docker.io/*", 20), ("*:v?.?", 3600)))
    assert rules.of(parse("busybox")) == 10
    assert rules.of(parse("busybox:1")) == 20
    assert rules.of(parse("quay.io/a/b:v1.2")) == 3600
    assert rules.of(parse("quay.io/a/b:v1.22")) == 60


def test_what_is_not_known_is_as_old_as_can_be() -> None:
    assert age_s(100.0, 130.0) == 30.0
    assert age_s(None, 130.0) == math.inf
    assert age_s(131.0, 130.0) == math.inf, "the clock was set back"
