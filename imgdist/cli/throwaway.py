"""`imgdist demo`: a throw-away stack on this machine."""

from __future__ import annotations

import importlib

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--keep", is_flag=True, help="Leave the stack up until Enter or Ctrl-C.")
@click.option("--image", metavar="REF", help="This image instead of the one the demo makes (needs its registry).")
@click.option("--svg", metavar="FILE", help="Write the timeline as a picture [default: imgdist-demo.svg].")
def demo(as_json: bool, keep: bool, image: str | None, svg: str | None) -> int:
    """Show a real container starting lazily beside a plain pull, then clean up."""
    code: int = importlib.import_module("imgdist.demo.run").main(as_json=as_json, keep=keep, image=image, svg=svg)
    return code


COMMANDS: tuple[click.Command, ...] = (demo,)
