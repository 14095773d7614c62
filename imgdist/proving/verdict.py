"""What became of a look at a pack."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Outcome = Literal["proven", "false", "damaged", "unproven"]
OUTCOMES: tuple[Outcome, ...] = ("proven", "false", "damaged", "unproven")


class Verdict(Struct, frozen=True):
    """`proven`: it is what its layer converts to. `false`: it is not, wherever it comes from. `damaged`: this copy, or
    the tar-split stream that it was held against, is not what the index names. `unproven`: nothing is known; `reason`
    says why. All but the first have a reason."""

    outcome: Outcome
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome
