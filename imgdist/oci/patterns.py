"""Lists of images by pattern: "reg.example/team/*" for all of a team's, "reg.example" for a whole registry."""

from __future__ import annotations

import re
from collections.abc import Sequence

from imgdist.errors import ConfigError

_PATTERN = re.compile(r"[A-Za-z0-9*.:\[\]-]+(?:/[a-z0-9*._/-]*)?")


class Patterns:
    """Matches names ("host/repository"). `*` stands for any characters; a pattern without "/" for a whole registry.

    Raises ConfigError for what cannot be a pattern; `where` is the setting.
    """

    def __init__(self, patterns: Sequence[str], where: str) -> None:
        for pattern in patterns:
            if not _PATTERN.fullmatch(pattern):
                raise ConfigError(f"{where}: expected host/repository, * for any characters, got {pattern!r}")
        self._matcher = re.compile("|".join(map(_expression, patterns))) if patterns else None

    def __bool__(self) -> bool:
        return self._matcher is not None

    def match(self, name: str) -> bool:
        """Whether a name is in the list."""
        return self._matcher is not None and self._matcher.fullmatch(name) is not None


def _expression(pattern: str) -> str:
    whole = pattern if "/" in pattern else f"{pattern}/*"
    return ".*".join(map(re.escape, whole.split("*")))
