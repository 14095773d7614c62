"""What became of a look at a pack."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Outcome = Literal["proven", "partial", "false", "damaged", "unproven"]
OUTCOMES: tuple[Outcome, ...] = ("proven", "partial", "false", "damaged", "unproven")


class Verdict(Struct, frozen=True):
    """`proven`: it is what its layer converts to. `partial`: not all of it is here, and what is here is right. `false`:
    it is not what its layer converts to, wherever it comes from. `damaged`: this copy, or the tar-split stream beside
    it, is not what the index names. `unproven`: nothing is known. All but the first have a reason."""

    outcome: Outcome
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome
