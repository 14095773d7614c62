"""Cold start of a real image behind a shaped link: plain containerd against imgdist, page cache and agent root fresh.

The image is the demo's: Debian, Python, numpy, pandas, scipy, scikit-learn; its program imports them, fits and prints a
line. Packs are ready at the supernode (preheated), as a supernode's second node finds them. Seconds run from the start
of the pull to the first output. Everything is plain HTTP. With --rtt-ms the measure is not the plain pull but what no
system can beat: the link time of the bytes touched, or the start of the same image from local disk.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Sequence
from statistics import median

import msgspec

from bench.report import Report, Row
from imgdist.demo import machine
from imgdist.demo.containerd import newest
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.recipe import APPLICATION, demo_image
from imgdist.demo.stack import Pushed, Stack
from imgdist.demo.start import Start
from imgdist.errors import ImgdistError
from imgdist.wire.control import Trace
from supernode.store.layout import Layout
from supernode.store.reader import PackReader

LINK_BITS_PER_S = 200_000_000
TRACED_GOAL, UNTRACED_GOAL, TRUE_GOAL = 0.28, 0.35, 0.06
FLOOR_GOAL = 1.6
_TRUE = ("/bin/true",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rtt-ms", type=float, default=0.0, metavar="N", help="added round-trip time [default: 0]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="starts of each kind [default: 5]")


def run(args: argparse.Namespace) -> Report:
    """Medians of `args.rounds` starts of each kind. Needs root and the demo's parts."""
    with interrupted_once():
        machine.check()
        machine.install_missing(machine.PACKAGES, _say)
        image = demo_image(_say)
        install = newest()
        with Stack(install, bits_per_s=LINK_BITS_PER_S, rtt_ms=args.rtt_ms) as stack:
            pushed = stack.push(image, "app")
            _say(f"preheated in {stack.preheat(pushed):.1f} s")
            rows = _against_floor(stack, args.rounds) if args.rtt_ms else _against_plain(stack, args.rounds)
    note = (
        f"containerd {install.version}, {LINK_BITS_PER_S // 10**6} Mbit/s, added round trip {args.rtt_ms:g} ms, image "
        f"{image.layers_bytes / 1e6:.0f} MB in {len(image.layers)} layers, medians of {args.rounds}, plain HTTP"
    )
    return Report("lazy-start", tuple(rows), note)


def _against_plain(stack: Stack, rounds: int) -> list[Row]:
    measure = _Measure(stack)
    measure.record()
    plain, untraced, traced, true_plain, true_lazy = [], [], [], [], []
    # Kinds take turns, so that a machine that is busy for a while is busy for all of them.
    for _ in range(rounds):
        plain.append(measure.plain("plain", APPLICATION))
        untraced.append(measure.untraced("without trace", APPLICATION))
        traced.append(measure.traced())
        true_plain.append(measure.plain("/bin/true, plain", _TRUE))
        true_lazy.append(measure.untraced("/bin/true", _TRUE))
    return [
        Row("with trace / plain", _seconds(traced) / _seconds(plain), TRACED_GOAL),
        Row("without trace / plain", _seconds(untraced) / _seconds(plain), UNTRACED_GOAL),
        Row("/bin/true / plain", _seconds(true_lazy) / _seconds(true_plain), TRUE_GOAL),
        _same(plain, untraced, traced),
        Row("plain", _seconds(plain), unit="s"),
        Row("with trace", _seconds(traced), unit="s"),
        Row("without trace", _seconds(untraced), unit="s"),
        Row("/bin/true, plain", _seconds(true_plain), unit="s"),
        Row("/bin/true, imgdist", _seconds(true_lazy), unit="s"),
        Row("pull and Prepare", median(start.pulled_s for start in traced), unit="s"),
        Row("before output, plain", _megabytes(plain), unit="MB"),
        Row("before output, without trace", _megabytes(untraced), unit="MB"),
        Row("before output, with trace", _megabytes(traced), unit="MB"),
    ]


def _against_floor(stack: Stack, rounds: int) -> list[Row]:
    measure = _Measure(stack)
    measure.record()
    local = stack.local("local", measure.app, APPLICATION, rounds)
    untraced, traced = [], []
    for _ in range(rounds):
        untraced.append(measure.untraced("without trace", APPLICATION))
        traced.append(measure.traced())
    touched = _touched_bytes(stack, measure.app)
    link_s = touched * 8 / LINK_BITS_PER_S
    floor_s = max(link_s, _seconds(local))
    return [
        Row("with trace / max(link, local)", _seconds(traced) / floor_s, FLOOR_GOAL),
        _same(local, untraced, traced),
        Row("bytes touched, as they travel", touched / 1e6, unit="MB"),
        Row("their link time", link_s, unit="s"),
        Row("local cold start", _seconds(local), unit="s"),
        Row("with trace", _seconds(traced), unit="s"),
        Row("without trace", _seconds(untraced), unit="s"),
        Row("before output, with trace", _megabytes(traced), unit="MB"),
    ]


class _Measure:
    """Single starts on one stack. A tag of its own is a manifest of its own: nobody's trace."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._image = demo_image()
        self._tags = 0
        self.app = stack.push(self._image, "app")

    def record(self) -> None:
        """Leave a trace of `app`: of the whole start, not of its first burst, hence until the fill has ended."""
        start = self._told(self._stack.lazy("recording the trace", self.app, APPLICATION, filled=True, traced=True))
        if not start.traced:
            raise ImgdistError("lazy-start: expected a start to leave a trace at the supernode, there is none")

    def plain(self, what: str, argv: Sequence[str]) -> Start:
        return self._told(self._stack.plain(what, self.app, argv))

    def untraced(self, what: str, argv: Sequence[str]) -> Start:
        self._tags += 1
        pushed = self._stack.push(self._image, f"untraced-{self._tags}")
        self._stack.preheat(pushed)
        return self._told(self._stack.lazy(what, pushed, argv))

    def traced(self) -> Start:
        return self._told(self._stack.lazy("with trace", self.app, APPLICATION))

    @staticmethod
    def _told(start: Start) -> Start:
        _say(f"{start.what}: {start.seconds:.2f} s, {start.bytes_before_output / 1e6:.1f} MB before output")
        return start


def _touched_bytes(stack: Stack, pushed: Pushed) -> int:
    """Encoded size of the chunks of the recorded trace, by the tables of the supernode's packs."""
    trace = msgspec.msgpack.decode(stack.supernode.trace(pushed.manifest_digest) or b"", type=Trace)
    store = Layout(stack.supernode.root)
    packs = [PackReader(store.link(digest)) for digest in trace.layers]
    return sum(packs[layer].row(chunk).length for layer, chunk in struct.iter_unpack("<HI", trace.entries))


def _seconds(starts: list[Start]) -> float:
    return median(start.seconds for start in starts)


def _megabytes(starts: list[Start]) -> float:
    return median(start.bytes_before_output for start in starts) / 1e6


def _same(*kinds: list[Start]) -> Row:
    outputs = {start.output for starts in kinds for start in starts}
    return Row("different outputs", len(outputs), 1)


def _say(text: str) -> None:
    print(f"lazy-start: {text}", file=sys.stderr, flush=True)
