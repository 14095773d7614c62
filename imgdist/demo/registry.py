"""Debian's docker-registry with a configuration of its own (Debian's asks for a password)."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imgdist.demo.processes import Process

_CONFIG = """version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: "{listen}"
"""


def answers(address: str, path: str = "/") -> bool:
    """Whether HTTP at `address` ("host:port") answers 200 at `path` within a second."""
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def registry(
    directory: Path, listen: str, *, inside: Sequence[str] = (), reached_at: str | None = None
) -> Iterator[str]:
    """A running registry; yields the address ("host:port") that images are named by.

    `directory` takes its blobs, configuration and log. `inside` is a command prefix (`Link.inside`) that starts it
    in a network namespace; `reached_at` is the address from here where that differs from `listen`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "registry.yml"
    config.write_text(_CONFIG.format(root=directory / "blobs", listen=listen))
    address = reached_at or listen
    argv = [*inside, "docker-registry", "serve", str(config)]
    with Process("docker-registry", argv, directory / "registry.log") as process:
        process.wait_until(lambda: answers(address, "/v2/"))
        yield address
