"""Docker's `registry-mirrors` in its daemon.json: one address put in, and taken out again to the byte. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from imgdist.errors import UnsupportedError

_KEY = "registry-mirrors"
_LIST = re.compile(rf'"{_KEY}"\s*:\s*\[')


def with_mirror(text: str, url: str, name: str) -> str:
    """`text` (empty: no file) with the mirror first; the rest of it stays as it is. UnsupportedError names `name`."""
    before = _parsed(text or "{}", name)
    if url in before.get(_KEY, []):
        return text
    if not text.strip():
        return f"{{\n  {_entry(url)}\n}}\n"
    known = _LIST.search(text)
    if known is not None:
        # A space in a list that was empty: that is how it is known from a list that is ours.
        changed = text[: known.end()] + json.dumps(url) + (", " if before[_KEY] else " ") + text[known.end() :]
    else:
        start = text.index("{") + 1
        changed = text[:start] + _entry(url) + (", " if before else "") + text[start:]
    if _parsed(changed, name) != {**before, _KEY: [url, *before.get(_KEY, [])]}:
        raise UnsupportedError(f"{name}: cannot be edited safely; add {json.dumps(url)} to {_KEY} by hand")
    return changed


def without_mirror(text: str, url: str) -> str:
    """`text` as it was before `with_mirror`, empty if that made it; written anew where somebody did so since."""
    try:
        now = json.loads(text)
        if url not in now[_KEY]:
            return text
    except (ValueError, KeyError, TypeError):
        return text
    if text == with_mirror("", url, ""):
        return ""
    others = [mirror for mirror in now[_KEY] if mirror != url]
    wanted = {key: value for key, value in now.items() if key != _KEY}
    for fragment in (f"{_entry(url)}, ", _entry(url), f"{json.dumps(url)}, ", f"{json.dumps(url)} "):
        changed = text.replace(fragment, "", 1)
        if _means(changed, wanted if _KEY not in changed else {**wanted, _KEY: others}):
            return changed
    return json.dumps({**wanted, _KEY: others} if others else wanted, indent=2) + "\n"


def _entry(url: str) -> str:
    return f"{json.dumps(_KEY)}: [{json.dumps(url)}]"


def _means(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(text) == wanted)
    except ValueError:
        return False


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UnsupportedError(f"{name}: expected JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get(_KEY, []), list):
        raise UnsupportedError(f"{name}: expected a JSON object with a list of {_KEY}")
    return document
