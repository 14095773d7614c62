"""Which proxy a request goes through: what is configured, else HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Pure.

As curl and Go read them, so that what works for containerd works here: lower case wins, NO_PROXY takes `*`, names with
their subdomains, IP addresses and networks, each with an optional port; this machine itself is never behind a proxy.
(aiohttp's `trust_env` would also read passwords from ~/.netrc, and knows no networks.)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from yarl import URL

from imgdist.errors import ConfigError

DIRECT = "direct"
"""A setting that means: no proxy, whatever the environment says."""


def proxy_for(url: URL, setting: str, environment: Mapping[str, str]) -> URL | None:
    """The proxy for a request, None for none. `setting` is DIRECT, a proxy's URL or "" (the environment's).

    Raises ConfigError for what is no proxy's URL.
    """
    host = url.host or ""
    if setting == DIRECT or _is_this_machine(host):
        return None
    if setting:
        return parse_proxy(setting, "registry.proxy")
    if _is_exempt(host, url.port, _variable(environment, "no_proxy")):
        return None
    name = f"{url.scheme}_proxy"
    text = _variable(environment, name)
    return parse_proxy(text, name.upper()) if text else None


def parse_proxy(text: str, where: str) -> URL:
    """A proxy's URL; `host:port` alone is http. Raises ConfigError that quotes no password."""
    try:
        url = URL(text if "://" in text else f"http://{text}")
    except ValueError:
        url = URL()
    if url.scheme != "http" or not url.host:
        shown = url.with_user(None) if url.host else "something else"
        raise ConfigError(f"{where}: expected the URL of an HTTP proxy, http://host:port, got {shown}")
    return url


def _variable(environment: Mapping[str, str], name: str) -> str:
    # HTTP_PROXY in capitals can be set by a request's header in CGI programs; a daemon is none.
    return (environment.get(name) or environment.get(name.upper()) or "").strip()


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_exempt(host: str, port: int | None, no_proxy: str) -> bool:
    return any(_covers(entry, host.lower(), port) for entry in no_proxy.lower().replace(",", " ").split())


def _covers(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, entry_port = _split_port(entry)
    if entry_port is not None and entry_port != port:
        return False
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    """An entry's host and port; IPv6 addresses have brackets if there is a port."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, int(rest[1:]) if rest[1:].isdecimal() else None
    name, colon, port = entry.rpartition(":")
    if colon and ":" not in name and port.isdecimal():
        return name, int(port)
    return entry, None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
