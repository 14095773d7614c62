"""`imgdist demo`: plain pull and start beside imgdist's, behind one slow link, on a stack that is thrown away."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from imgdist.demo import machine, timeline
from imgdist.demo.cache import cache_directory
from imgdist.demo.containerd import newest
from imgdist.demo.copy import copied_image, program
from imgdist.demo.image import Image
from imgdist.demo.interrupts import interrupted_once
from imgdist.demo.recipe import APPLICATION, BEFORE, demo_image
from imgdist.demo.stack import Pushed, Stack
from imgdist.demo.start import Start
from imgdist.demo.svg import drawing
from imgdist.demo.update import Update, measured
from imgdist.errors import ImgdistError

LINK_BITS_PER_S = 200_000_000
SVG_FILE = "imgdist-demo.svg"
# A foreign image may be a server: it is ended so long after its first output.
_LINGER_S = 3.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What the demo measured. Starts of /bin/true are None where the image has no such program, the update where the
    image is somebody else's."""

    plain: Start
    lazy_first: Start
    lazy: Start
    true_plain: Start | None
    true_lazy: Start | None
    update: Update | None
    image: Image
    preheat_s: float
    containerd_version: str

    def as_json(self) -> dict[str, Any]:
        """The document of `imgdist demo --json`; seconds from the start of the pull, bytes as seen on the link."""
        return {
            "plain_seconds": _round(self.plain),
            "lazy_seconds": _round(self.lazy),
            "lazy_first_seconds": _round(self.lazy_first),
            "true_plain_seconds": _round(self.true_plain),
            "true_lazy_seconds": _round(self.true_lazy),
            "same_output": self.same_output,
            "bytes_before_output": self.lazy.bytes_before_output,
            "bytes_total": self.lazy.bytes_total,
            "plain_bytes_total": self.plain.bytes_total,
            "image_bytes": self.image.layers_bytes,
            "link_bits_per_s": LINK_BITS_PER_S,
            "preheat_seconds": round(self.preheat_s, 3),
            "containerd_version": self.containerd_version,
            "update": self.update and self.update.as_json(),
            "machine": machine.describe(),
        }

    @property
    def same_output(self) -> bool:
        return len({start.output for start in self.starts}) == 1

    @property
    def starts(self) -> list[Start]:
        """What is drawn, the plain one first."""
        return [self.plain, self.lazy_first, self.lazy, *([self.update.start] if self.update else [])]

    @property
    def notes(self) -> list[str]:
        """What is said of the update."""
        return self.update.notes() if self.update else []


def main(*, as_json: bool, keep: bool, image: str | None, svg: str | None) -> int:
    """Run the demo; 0. Raises UnsupportedError (exit 3), KeyboardInterrupt (130) or another ImgdistError (1)."""
    report = Console(stderr=as_json)
    file = Path(svg or SVG_FILE)
    with interrupted_once():
        machine.check()
        try:
            with _progress() as progress:
                programs = machine.PACKAGES | (machine.COPY_PACKAGES if image else {})
                machine.install_missing(programs, progress)
                result = _measure(progress, image, keep)
        finally:
            stays = f"what stays are installed Debian packages and the cache in {cache_directory()}"
            print(f"demo: everything is undone; {stays}", file=sys.stderr)
        title = _title(result)
        _draw(file, result, title)
        _print(report, result, title, file)
        if as_json:
            print(json.dumps(result.as_json()))
    # A foreign image may print the time of day; ours must print the same.
    return 0 if result.same_output or image else ImgdistError.exit_code


def _measure(progress: Progress, reference: str | None, keep: bool) -> Result:
    with tempfile.TemporaryDirectory(prefix="imgdist-", dir="/var/tmp") as temporary:
        image = copied_image(reference, Path(temporary), progress) if reference else demo_image(progress)
        before = None if reference else demo_image(progress, BEFORE)
        argv = program(image) if reference else APPLICATION
        linger_s = _LINGER_S if reference else None
        install = newest()
        progress(f"starting registry and supernode behind a link of {LINK_BITS_PER_S // 10**6} Mbit/s")
        with Stack(install, bits_per_s=LINK_BITS_PER_S) as stack:
            # Two manifests with the same layers: a start of one leaves no trace for the other.
            app, true = stack.push(image, "app"), stack.push(image, "true")
            progress("preheating the supernode: it fetches and converts the image, once for all nodes")
            preheat_s = stack.preheat(app)
            stack.preheat(true)
            progress("plain: pull and start")
            plain = stack.plain("plain", app, argv, linger_s=linger_s)
            progress("imgdist, first start: nobody has started this image before")
            first = stack.lazy("imgdist, first", app, argv, filled=True, traced=True, linger_s=linger_s)
            if not (first.traced or reference):
                raise ImgdistError("demo: expected the first start to leave a trace at the supernode, there is none")
            progress("imgdist, a fresh node" + (": the first start's trace goes ahead" if first.traced else ""))
            lazy = stack.lazy("imgdist", app, argv, filled=True, linger_s=linger_s)
            progress("/bin/true, plain and imgdist")
            true_plain, true_lazy = _true(stack, app, true, required=reference is None)
            update = measured(stack, (before, image), app, argv, lazy, progress) if before else None
            result = Result(plain, first, lazy, true_plain, true_lazy, update, image, preheat_s, install.version)
            if keep:
                _keep(stack, app, argv, progress)
    return result


def _true(stack: Stack, app: Pushed, true: Pushed, *, required: bool) -> tuple[Start | None, Start | None]:
    try:
        return stack.plain("true", app, ["/bin/true"]), stack.lazy("true", true, ["/bin/true"])
    except ImgdistError:
        if required:
            raise
        return None, None  # a foreign image need not have the program


def _keep(stack: Stack, pushed: Pushed, argv: Sequence[str], progress: Progress) -> None:
    """One more node, left up until Enter (at a terminal) or SIGINT or SIGTERM."""
    progress("starting a node to keep")
    with stack.node() as (agent, containerd):
        containerd.pull(pushed.reference)
        ctr = f"{containerd.install.directory}/ctr --address {containerd.socket} --namespace {containerd.namespace}"
        print(
            f"The stack is up in {stack.directory}. For example:\n"
            f"  {ctr} run --rm --snapshotter imgdist {pushed.reference} mine {shlex.join(argv)}\n"
            f"  imgdist layers --run {agent.run}\n"
            f"  curl {stack.supernode.url}/v1/status",
            file=sys.stderr,
        )
        try:
            if sys.stdin.isatty():
                input("Enter ends it. ")
            else:
                signal.pause()
        except KeyboardInterrupt:
            return


@contextmanager
def _progress() -> Iterator[Progress]:
    """A line a step on stderr; at a terminal a spinner shows the step that runs."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: console.print(f"demo: {text}", soft_wrap=True)
        return
    with console.status("demo") as status:

        def show(text: str) -> None:
            console.print(f"[dim]demo: {text}[/dim]")
            status.update(text)

        yield show


def _title(result: Result) -> str:
    return (
        f"containerd {result.containerd_version}, {LINK_BITS_PER_S // 10**6} Mbit/s, "
        f"image of {result.image.layers_bytes / 1e6:.0f} MB in {len(result.image.layers)} layers"
    )


def _draw(file: Path, result: Result, title: str) -> None:
    try:
        file.write_text(drawing(result.starts, LINK_BITS_PER_S, title, result.notes))
    except OSError as error:
        raise ImgdistError(f"{file}: cannot write the picture: {error.strerror}; name another file by --svg") from None


def _print(console: Console, result: Result, title: str, file: Path) -> None:
    console.print(f"\n[bold]{title}[/bold]\n")
    console.print(timeline.picture(result.starts, LINK_BITS_PER_S))
    if result.true_plain and result.true_lazy:
        plain_s, lazy_s = result.true_plain.seconds, result.true_lazy.seconds
        console.print(f"\n/bin/true: plain {plain_s:.2f} s, imgdist {lazy_s:.2f} s ({lazy_s / plain_s:.3f})")
    console.print(f"output: {'the same' if result.same_output else 'DIFFERENT'}: {result.lazy.output.strip()}")
    console.print(f"preheat before all this (fetch and convert at the supernode, once): {result.preheat_s:.1f} s")
    for note in result.notes:
        console.print(note)
    console.print(f"picture: {file}")


def _round(start: Start | None) -> float | None:
    return None if start is None else round(start.seconds, 3)
