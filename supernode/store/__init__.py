"""Where a supernode keeps packs."""

from __future__ import annotations

from supernode.store.local import LocalStore
from supernode.store.reader import PackReader

__all__ = ["LocalStore", "PackReader"]
