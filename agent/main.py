"""The agent process: `python -m agent.main CONFIG_JSON lazy|plain`, started by the holder.

Readers and containerd wait while a killed agent starts again, and importing is most of that. What neither of them needs
is loaded after them: the HTTP client that asks a supernode at the next pull, the registry mirror, and the API of the
command line. What protobuf would be in Python is never used beside its C library, which imports it all the same
(0.7 MiB, 8 ms).
"""

from __future__ import annotations

import sys

from agent.late import load_late


def main() -> int:
    """Serve until SIGTERM, or until the holder is gone."""
    load_late("aiohttp", "agent.api", "agent.mirror.service", "agent.rooted")
    load_late("google.protobuf.internal.python_message")
    from agent.app import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
