"""Where a registry's content can be had: its mirrors in order, those that failed lately left out, then itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from yarl import URL

from imgdist.errors import ConfigError

REST_S, REST_MAX_S = 1.0, 60.0
"""How long a mirror that failed is not asked: doubled with each failure in a row (guesses)."""
LIAR_REST_S = 600.0
"""And one that sent wrong bytes."""

_LOCATION = re.compile(r"(?:(https?)://)?([^/\s@]+)((?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)/?")


class Upstream:
    """One place: `base` is its origin, `host` its name for credentials, repositories are below `prefix`."""

    def __init__(self, base: URL, host: str, prefix: str = "", rewrites: Mapping[str, str] | None = None) -> None:
        self.base = base
        self.host = host
        self._prefix = prefix
        self._rewrites = sorted((rewrites or {}).items(), key=lambda item: -len(item[0]))
        self._failures = 0
        self._rests_until = 0.0

    def url(self, repository: str, path: str) -> URL:
        """The address of something in a repository."""
        return self.base / "v2" / self.repository(repository) / path

    def repository(self, repository: str) -> str:
        """What the repository is called there: the longest rewritten prefix, then what all are below."""
        for before, after in self._rewrites:
            if repository.startswith(before):
                repository = after + repository.removeprefix(before)
                break
        return f"{self._prefix}{repository}"

    def is_well(self, now: float) -> bool:
        """Whether it is worth a question."""
        return now >= self._rests_until

    def answered(self) -> None:
        """It gave what was asked for."""
        self._failures = 0

    def failed(self, now: float, *, lied: bool = False) -> None:
        """It did not answer, or not as it should."""
        rest_s = LIAR_REST_S if lied else min(REST_MAX_S, REST_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._rests_until = max(self._rests_until, now + rest_s)


def parse_location(text: str, where: str, *, rewrites: Mapping[str, str] | None = None) -> Upstream:
    """A mirror: "[https://|http://]host[:port][/prefix]". Raises ConfigError."""
    match = _LOCATION.fullmatch(text)
    try:
        base = URL(f"{match[1] or 'https'}://{match[2]}") if match else URL()
    except ValueError:
        base = URL()
    if match is None or not base.host:
        raise ConfigError(f"{where}: expected a mirror as https://host[:port][/prefix], got {text!r}")
    prefix = match[3].strip("/")
    return Upstream(base, match[2], f"{prefix}/" if prefix else "", rewrites)


class Upstreams:
    """A registry and its mirrors."""

    def __init__(self, origin: Upstream, mirrors: Sequence[Upstream] = ()) -> None:
        self.origin = origin
        self.mirrors = tuple(mirrors)

    def in_order(self, now: float) -> list[Upstream]:
        """Whom to ask, one after the other. The registry itself is always last, and its word is the last one."""
        return [mirror for mirror in self.mirrors if mirror.is_well(now)] + [self.origin]
