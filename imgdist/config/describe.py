"""Every key with its default, type and meaning, also as a TOML file."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Meta, Struct


class Key(typing.NamedTuple):
    """One configuration key: its default, its type as TOML users know it, and its meaning."""

    default: Any
    type_name: str
    description: str


def keys(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every key of a daemon's configuration as ("section.key", Key), in the order of the file."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for info in msgspec.structs.fields(kind):
        hint = hints[info.name]
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from keys(hint, f"{prefix}{info.name}.")
            continue
        base, meta = hint.__origin__, hint.__metadata__[0]
        default = info.default if info.default is not msgspec.NODEFAULT else info.default_factory()
        yield prefix + info.name, Key(default, _type_name(base, meta), meta.description or "")


def _type_name(base: Any, meta: Meta) -> str:
    origin = typing.get_origin(base)
    if origin is Literal:
        return " | ".join(f'"{choice}"' for choice in typing.get_args(base))
    if isinstance(base, types.GenericAlias):
        return "tables" if origin is dict else "list of strings"
    name = {int: "integer", float: "number", bool: "true | false", str: "string"}[base]
    bounds = [
        f"{sign} {value}" for sign, value in ((">=", meta.ge), (">", meta.gt), ("<=", meta.le)) if value is not None
    ]
    return " ".join([name, " and ".join(bounds)]).strip()


def toml(kind: type[Any]) -> str:
    """The defaults as a commented TOML file."""
    lines: list[str] = []
    section = ""
    for name, key in keys(kind):
        head, _, last = name.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        lines += [f"# {key.description} ({key.type_name})", f"{last} = {toml_value(key.default)}"]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML on one line; what `--set` reads."""
    if isinstance(value, Mapping):
        items = (f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return msgspec.json.encode(value).decode()
