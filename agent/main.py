"""The agent process: `python -m agent.main CONFIG_JSON lazy|plain`, started by the holder.

Readers and containerd wait while a killed agent starts again, and importing is most of that. What neither of them needs
is loaded after them: the HTTP client that asks a supernode at the next pull, the registry mirror, and the API of the
command line.
"""

from __future__ import annotations

import sys

from agent.late import load_late


def main() -> int:
    """Serve until SIGTERM, or until the holder is gone."""
    load_late("aiohttp", "agent.api", "agent.mirror.service", "agent.rooted")
    from agent.app import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
