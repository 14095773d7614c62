"""Modules that are loaded when something of them is first used: a killed agent serves again that much sooner."""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_loading = threading.RLock()


def load_late(*names: str) -> None:
    """From now on `import NAME` and `from PACKAGE import NAME` give a stand-in that loads the module at the first look
    at one of its attributes, in whatever thread. Nothing changes for what is loaded already, or not there at all."""
    for name in names:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            module = sys.modules[name] = _Late(name)
            module.__spec__ = spec  # the import statement looks at it


class _Late(ModuleType):
    def __getattr__(self, name: str) -> Any:
        with _loading:  # not importlib.util.LazyLoader: two threads may see half a module there (CPython gh-114763)
            if sys.modules.get(self.__name__) is self:  # gone, if it could not be loaded the last time
                del sys.modules[self.__name__]
            module = importlib.import_module(self.__name__)
            self.__dict__.update(module.__dict__)
        return getattr(module, name)
