"""What clients showed a registry and it took: used to read for them, in memory alone, for that repository alone.

A Bearer token is forgotten when it expires (its own word, else a minute after it was last shown), a password ten
minutes after it was last shown, and both when the registry refuses them.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from imgdist.oci.credentials import expiry

TOKEN_S = 60.0
"""Life of a token that does not say how long: what servers give at least (token specification, "expires_in")."""
PASSWORD_S = 600.0
HEADERS_MAX = 8
"""Of one repository; the latest count: every client of a repository can read the same."""
REPOSITORIES_MAX = 10_000


class SeenCredentials:
    """Authorization headers by name ("host/repository"), the latest first. `clock` is in seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._headers: OrderedDict[str, dict[str, float]] = OrderedDict()

    def note(self, name: str, header: str) -> None:
        """The registry has taken this header for the repository."""
        headers = self._headers.setdefault(name, {})
        self._headers.move_to_end(name)
        headers.pop(header, None)
        headers[header] = self._until(header)
        while len(headers) > HEADERS_MAX:
            del headers[next(iter(headers))]
        while len(self._headers) > REPOSITORIES_MAX:
            self._headers.popitem(last=False)

    def find(self, name: str) -> str | None:
        """The header that was noted last and is still good."""
        headers = self._headers.get(name, {})
        now = self._clock()
        for header in [header for header, until in headers.items() if now >= until]:
            del headers[header]
        if not headers:
            self._headers.pop(name, None)
            return None
        return next(reversed(headers))

    def refused(self, name: str, header: str) -> None:
        """The registry takes it no more."""
        self._headers.get(name, {}).pop(header, None)

    def sweep(self) -> None:
        """Forget everything that has expired, of repositories that nobody asks for, too."""
        for name in list(self._headers):
            self.find(name)

    def _until(self, header: str) -> float:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":
            return self._clock() + PASSWORD_S
        ends = expiry(secret.strip())
        return self._clock() + TOKEN_S if math.isinf(ends) else ends
