"""Where a supernode keeps packs."""

from __future__ import annotations

from supernode.store.local import LocalStore, PackInfo
from supernode.store.reader import PackReader

__all__ = ["LocalStore", "PackInfo", "PackReader"]
