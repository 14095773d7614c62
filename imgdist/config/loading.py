"""From file, settings and flags to a configuration, or to one line that says what is wrong with them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from imgdist.config.agent import AgentConfig
from imgdist.config.describe import keys
from imgdist.config.registries import AccessConfig, RegistryConfig, RegistryHost
from imgdist.config.supernode import SupernodeConfig
from imgdist.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=SupernodeConfig | AgentConfig)


def load(
    kind: type[ConfigT],
    file: str | None = None,
    settings: tuple[str, ...] = (),
    flags: Mapping[str, Any] | None = None,
) -> ConfigT:
    """The configuration from `file` (TOML), then `settings` ("section.key=value"), then `flags` ("section.key": value).

    Raises ConfigError naming the place, the key, the value and what is allowed.
    """
    document: dict[str, Any] = {}
    if file is not None:
        document = _read(file)
        _convert(kind, document, file)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: expected section.key=value")
        _put(kind, document, key.strip(), _value(text.strip()), f"--set {setting}")
    for key, value in (flags or {}).items():
        _put(kind, document, key, value, "--" + key.rpartition(".")[2].replace("_", "-"))
    return _convert(kind, document, file or "command line")


def _read(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected TOML: {error}") from None


def _value(text: str) -> Any:
    """A setting's value: TOML where it parses as TOML (3, true, ["a"]), else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _put(kind: type[Any], document: dict[str, Any], key: str, value: Any, where: str) -> None:
    known = dict(keys(kind))
    if key not in known:
        raise ConfigError(f"{where}: there is no key {key!r}; known: {', '.join(known)}")
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[last] = value


def _convert(kind: type[ConfigT], document: dict[str, Any], where: str) -> ConfigT:
    try:
        converted = msgspec.convert(document, kind)
        if converted.space.low >= converted.space.high:
            raise ConfigError(
                f"{where}: space.low = {converted.space.low}: expected less than space.high, which is"
                f" {converted.space.high}"
            )
        _check_registries(converted, where)
        return converted
    except msgspec.ValidationError as error:
        message = str(error)
        reason, _, path = message.partition(" - at `$")
        key = path.strip("`").lstrip(".") if path else ""
        raise ConfigError(f"{where}: {_explain(kind, document, key, reason)}") from None


def _check_registries(converted: SupernodeConfig | AgentConfig, where: str) -> None:
    """What only the registry client understands: proxies, mirrors, lists. It is loaded for those who set any of it."""
    if converted.registry == RegistryConfig() and converted.access == AccessConfig():
        return
    from imgdist.oci import settings

    try:
        settings.check(converted.registry)
        settings.check_list(converted.access.shared, "access.shared")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _explain(kind: type[Any], document: dict[str, Any], key: str, reason: str) -> str:
    if key.startswith("registry.hosts["):  # whose name the validator does not tell
        return _explain_host(document["registry"]["hosts"])
    if "unknown field" in reason:
        names = [name for name, _ in keys(kind) if name.rpartition(".")[0] == key]
        prefix = f"[{key}] " if key else ""
        return f"{prefix}{reason[0].lower()}{reason[1:]}; known: {', '.join(names)}"
    seen: Any = document
    for part in key.split("."):
        seen = seen.get(part) if isinstance(seen, dict) else seen
    return f"{key} = {seen!r}: {reason[0].lower()}{reason[1:]}"


def _explain_host(hosts: dict[str, Any]) -> str:
    """Which registry's settings are wrong, and how."""
    for host, settings in hosts.items():
        try:
            msgspec.convert(settings, RegistryHost)
        except msgspec.ValidationError as error:
            reason, _, path = str(error).partition(" - at `$.")
            known = ", ".join(RegistryHost.__struct_fields__)
            key = path.strip("`") or "keys"
            return f'[registry.hosts."{host}"] {key}: {reason[0].lower()}{reason[1:]}; known: {known}'
    return "registry.hosts: expected tables of settings by host[:port]"
