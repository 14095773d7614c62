"""containerd's filter language, as List receives it. Pure: strings in, a predicate out.

Source: containerd `pkg/filters` (scanner, parser, quote). A filter is a comma-separated list of selectors that
must all match; of several filters one must match; an empty filter, or none, matches everything.

    selector  := fieldpath [operator value]
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="
    value     := quoted | printable characters up to a comma or a space
    quoted    := Go string syntax in "..."; for ~= also /.../ and |...|
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgdist.errors import UsageError

Fields = Callable[[tuple[str, ...]], str | None]
"""Maps a field path to the value of an object, or None where the object has no such field."""

_QUOTES = '"/|'
_FIELD = re.compile(r"[A-Za-z0-9_]*")
_OPERATOR = re.compile(r"[=!~]*")
_PLAIN_VALUE = re.compile(r"[!-+\--~]*")  # ASCII that is printable, no comma, no space
_UNESCAPED = {quote: re.compile(rf"[^\\\n{quote}]*") for quote in _QUOTES}
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_NUMERIC = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class Selector:
    """One condition: the field at `path` is present (operator ""), or compares with `value`."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def matches(self, fields: Fields) -> bool:
        """True if the object behind `fields` satisfies this condition. An absent field compares as ""."""
        seen = fields(self.path)
        if self.operator == "":
            return seen is not None
        if self.operator == "==":
            return seen == self.value
        if self.operator == "!=":
            return (seen or "") != self.value
        return self.pattern is not None and self.pattern.search(seen or "") is not None


@dataclass(frozen=True)
class Filter:
    """Alternatives of conjunctions; no alternative at all matches everything."""

    alternatives: tuple[tuple[Selector, ...], ...]

    def matches(self, fields: Fields) -> bool:
        """True if any alternative matches as a whole."""
        return not self.alternatives or any(
            all(selector.matches(fields) for selector in selectors) for selectors in self.alternatives
        )

    def required(self, path: tuple[str, ...]) -> str | None:
        """The value that every match has at `path`, None where several would do: lets a search use an index."""
        if len(self.alternatives) != 1:
            return None
        wanted = (one.value for one in self.alternatives[0] if one.path == path and one.operator == "==")
        return next(wanted, None)


def parse(filters: Sequence[str]) -> Filter:
    """Parse what List was given. UsageError names the filter, the place and what was expected there."""
    return Filter(tuple(tuple(_Parser(text).selectors()) if text else () for text in filters))


class _Parser:
    """Recursive descent over one filter; `pos` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def selectors(self) -> list[Selector]:
        found = [self._selector()]
        while self._peek() == ",":
            self.pos += 1
            found.append(self._selector())
        if self.pos < len(self.text):
            raise self._error("expected a comma or the end")
        return found

    def _peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while self.pos < len(self.text) and self.text[self.pos].isspace():
            self.pos += 1
        return self.text[self.pos : self.pos + 1]

    def _error(self, expected: str) -> UsageError:
        return UsageError(f"filter {self.text!r}, character {self.pos + 1}: {expected}")

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._peek() == ".":
            self.pos += 1
            path.append(self._field())
        if self._peek() in ("", ","):
            return Selector(tuple(path))
        operator = self._run(_OPERATOR)
        if operator not in ("==", "!=", "~="):
            raise self._error(f"expected ==, != or ~=, found {operator or self._peek()!r}")
        value = self._value(alternative_quotes=operator == "~=")
        return Selector(tuple(path), operator, value, _compile(value) if operator == "~=" else None)

    def _field(self) -> str:
        quote = self._peek()
        if quote == '"':
            return self._quoted()
        if quote and quote in _QUOTES:
            raise self._error('expected a field or "quoted" text')
        field = self._run(_FIELD)
        if not field:
            raise self._error("expected a field or quoted text")
        return field

    def _value(self, *, alternative_quotes: bool) -> str:
        first = self._peek()
        if first and first in _QUOTES:
            if first != '"' and not alternative_quotes:
                raise self._error('only "..." may quote here')
            return self._quoted()
        value = "" if first in (".", "=", "!", "~") else self._unquoted()
        if not value:
            raise self._error("expected a value or quoted text")
        return value

    def _run(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.pos)
        assert match is not None  # it may be empty
        self.pos = match.end()
        return match[0]

    def _unquoted(self) -> str:
        start = self.pos
        self._run(_PLAIN_VALUE)
        while self.pos < len(self.text) and self.text[self.pos] != "," and _is_value(self.text[self.pos]):
            self.pos += 1
        return self.text[start : self.pos]

    def _quoted(self) -> str:
        """Go string syntax up to the closing quote. Escapes make bytes (octal, hex) or characters (u, U)."""
        quote = self.text[self.pos]
        self.pos += 1
        out = bytearray(self._run(_UNESCAPED[quote]).encode())
        while (char := self._next()) != quote:
            out += self._escape(quote) if char == "\\" else char.encode()
        return out.decode(errors="replace")

    def _next(self) -> str:
        char = self.text[self.pos : self.pos + 1]
        if char in ("", "\n"):
            raise self._error("quoted text has no end")
        self.pos += 1
        return char

    def _escape(self, quote: str) -> bytes:
        char = self._next()
        if char == quote or char in _ESCAPES:
            return _ESCAPES.get(char, char).encode()
        if char in _NUMERIC:
            code = self._digits("", _NUMERIC[char], 16)
            return bytes([code]) if char == "x" else self._character(code)
        if char in string.octdigits:
            code = self._digits(char, 3, 8)
            if code < 256:
                return bytes([code])
        raise self._error("no such escape")

    def _digits(self, digits: str, count: int, base: int) -> int:
        while len(digits) < count:
            digits += self._next()
        try:
            return int(digits, base) if digits.isalnum() else int("", base)
        except ValueError:
            raise self._error("expected digits after the backslash") from None

    def _character(self, code: int) -> bytes:
        if code > 0x10FFFF:
            raise self._error("no such character")
        return chr(code).encode(errors="replace")


def _is_value(char: str) -> bool:
    return char.isprintable() and not char.isspace()


def _compile(pattern: str) -> re.Pattern[str] | None:
    """containerd's rule: a pattern that does not compile matches nothing."""
    try:
        return re.compile(pattern)
    except re.error:
        return None
