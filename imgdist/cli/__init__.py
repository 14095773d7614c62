"""The command line: `imgdist COMMAND`. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from imgdist import __version__
from imgdist.cli import daemons, drain, install, node, packs, simulate, space, throwaway, verify
from imgdist.errors import ImgdistError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="imgdist")
def cli() -> None:
    """Start containers before their images are there: peer-to-peer, on-demand image distribution."""


for room in (daemons, node, drain, space, install, packs, verify, simulate, throwaway):
    for command in room.COMMANDS:
        cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 3 not supported here, 130 interrupted."""
    try:
        code = cli.main(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("imgdist: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ImgdistError as error:
        print(f"imgdist: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
