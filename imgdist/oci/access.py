"""Who may have what: the registry decides, for each client and repository, also about what is here already.

A client shows what it would show the registry, its Authorization header or nothing. `Authoriser.allowed` asks the
registry with exactly that, remembers a yes for a moment, and says what to answer. Secrets stay in memory, and in the
repository that they were sent for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from imgdist.errors import DeniedError, ImgdistError, NotFoundError, TemporaryError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to answer a client: `status` is 200 (go on), 401, 403, 404 or 503.

    `challenges` are the registry's WWW-Authenticate headers, to be sent with a 401 as they are. `reason` is one line
    without secrets. `retry_after_s` comes with a 503: the registry could not be asked, so nobody new gets in.
    `is_elsewhere` comes with a 404: the client may read it from its own registry, and what is here came from another.
    """

    status: int = 200
    challenges: tuple[str, ...] = ()
    reason: str = ""
    retry_after_s: float | None = None
    is_elsewhere: bool = False

    @property
    def is_allowed(self) -> bool:
        """Whether the client may have it."""
        return self.status == 200

    def check(self) -> None:
        """Return if it is allowed. Raises DeniedError (401, 403), NotFoundError (404) or TemporaryError (503)."""
        if not self.is_allowed:
            raise self._error()

    def _error(self) -> ImgdistError:
        if self.status == 404:
            return NotFoundError(self.reason)
        if self.status == 503:
            return TemporaryError(self.reason, self.retry_after_s)
        return DeniedError(self.reason, self.challenges)


class Authoriser(Protocol):
    """Asks registries whether a client may read. Concurrent questions about the same thing are asked once."""

    async def allowed(self, name: str, reference: str, authorization: str | None) -> Verdict:
        """Whether who shows `authorization` (a whole header, None: nothing) may have `reference` of the repository
        `name` ("host/repository").

        `reference` is what follows the repository in the distribution protocol: "manifests/1.36",
        "manifests/sha256:...", "blobs/sha256:...", "tags/list", "referrers/sha256:...". Never raises ImgdistError.
        """

    async def shown(self, name: str, digest: str) -> None:
        """Return when the registry of `name` has shown a blob that came from elsewhere first, or has failed to."""
