"""What a node that has an image fetches of its next patch release: bytes and seconds, four real families.

A node pulls the new release through the demo's link until all of it is on its disk: once as it comes, and once having
the release before it. The supernode has both converted. Bytes are those of chunk bodies, as they travel; images are one
layer each, so nothing is saved by layers that stay the same. With --cuts nothing is run: the layers are cut into chunks
of other sizes, which says what each would share.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

from bench.dedup_cuts import CUTS, shares
from bench.dedup_images import FAMILIES, Family
from bench.report import Report, Row
from imgdist.demo import caches, machine
from imgdist.demo.containerd import newest
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.stack import Pushed, Stack
from imgdist.pack import CHUNK_MAX

LINK_BITS_PER_S = 200_000_000
GOAL = 0.60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    names = [family.name for family in FAMILIES]
    parser.add_argument("--family", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--cuts", action="store_true", help="compare chunk sizes instead of pulling")


def run(args: argparse.Namespace) -> Report:
    """Measure. Needs root and the demo's parts; to make the images, once, npm and go as well."""
    families = [family for family in FAMILIES if not args.family or family.name in args.family]
    with interrupted_once():
        machine.check()
        machine.install_missing(machine.PACKAGES, _say)
        rows = _cut_rows(families) if args.cuts else _pull_rows(families)
    what = "; ".join(f"{family.name}: {family.what}" for family in families)
    return Report("dedup", tuple(rows), f"{LINK_BITS_PER_S // 10**6} Mbit/s, plain HTTP. {what}")


@dataclass(frozen=True, slots=True)
class _Pull:
    """`seconds` until the last byte was on the disk; chunk bodies received, and chunks copied on the disk, raw."""

    seconds: float
    fetched_bytes: int
    copied_bytes: int
    link_bytes: int


def _pull_rows(families: list[Family]) -> list[Row]:
    rows = []
    with Stack(newest(), bits_per_s=LINK_BITS_PER_S) as stack:
        for family in families:
            images = family.images(_say)
            old, new = (stack.push(image, f"{family.name}-{number}") for number, image in enumerate(images))
            for pushed in (old, new):
                _say(f"{family.name}: preheated in {stack.preheat(pushed):.1f} s")
            rows += _rows_of(family, _pull(stack, new), _pull(stack, new, have=old), images[1].layers_bytes)
    return rows


def _rows_of(family: Family, fresh: _Pull, update: _Pull, layers_bytes: int) -> list[Row]:
    saved = 1 - update.fetched_bytes / fresh.fetched_bytes
    return [
        Row(f"{family.name}: not fetched again", saved, GOAL, at_least=True),
        Row(f"{family.name}: fetched by a fresh node", fresh.fetched_bytes / 1e6, unit="MB"),
        Row(f"{family.name}: fetched by one with the release before", update.fetched_bytes / 1e6, unit="MB"),
        Row(f"{family.name}: copied on its disk, raw", update.copied_bytes / 1e6, unit="MB"),
        Row(f"{family.name}: saved on the link", (fresh.link_bytes - update.link_bytes) / 1e6, unit="MB"),
        Row(f"{family.name}: the layer as a plain pull fetches it", layers_bytes / 1e6, unit="MB"),
        Row(f"{family.name}: until all is here, fresh node", fresh.seconds, unit="s"),
        Row(f"{family.name}: until all is here, with the release before", update.seconds, unit="s"),
    ]


def _pull(stack: Stack, new: Pushed, *, have: Pushed | None = None) -> _Pull:
    with stack.node() as (agent, containerd):
        if have is not None:
            containerd.pull(have.reference)
            agent.wait_complete()
        caches.drop()
        fetched, copied = agent.chunk_bytes("supernode"), agent.chunk_bytes("dedup")
        link = stack.link.received_bytes()
        started = time.monotonic()
        containerd.pull(new.reference)
        agent.wait_complete()
        pull = _Pull(
            time.monotonic() - started,
            agent.chunk_bytes("supernode") - fetched,
            agent.chunk_bytes("dedup") - copied,
            stack.link.received_bytes() - link,
        )
    _say(f"{new.reference}: {pull.seconds:.1f} s, {pull.fetched_bytes / 1e6:.1f} MB fetched")
    return pull


def _cut_rows(families: list[Family]) -> list[Row]:
    rows = []
    for family in families:
        old, new = (image.path(image.layers[0]) for image in family.images(_say))
        for largest in CUTS:
            found = shares(old, new, largest)
            goal = GOAL if largest == CHUNK_MAX else None
            what = f"{family.name}, at most {largest >> 10} KiB: not fetched again ({found.chunks:,} chunks)"
            rows += [
                Row(what, found.saved, goal, at_least=True),
                Row(f"{family.name}, at most {largest >> 10} KiB: all bodies", found.encoded_bytes / 1e6, unit="MB"),
            ]
    return rows


def _say(text: str) -> None:
    print(f"dedup: {text}", file=sys.stderr, flush=True)
