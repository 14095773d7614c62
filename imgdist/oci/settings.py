"""How each registry is reached: what [registry] and [registry.hosts] say, by host."""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection, Mapping, Sequence

from yarl import URL

from imgdist.config.registries import RegistryConfig, RegistryHost
from imgdist.errors import ConfigError, DeniedError
from imgdist.oci.patterns import Patterns
from imgdist.oci.proxies import DIRECT, parse_proxy, proxy_for
from imgdist.oci.tls import Contexts, TlsFiles
from imgdist.oci.upstreams import Upstream, Upstreams, parse_location

HUB = "registry-1.docker.io"
_NOTHING = RegistryHost()


class RegistrySettings:
    """Raises ConfigError, naming the key, for what cannot be right. `plain_http`: registries without TLS; `environment`
    has the proxies' variables."""

    def __init__(
        self,
        config: RegistryConfig | None = None,
        plain_http: Collection[str] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._config = config or RegistryConfig()
        self._plain_http = frozenset(plain_http)
        self._environment = environment
        self._contexts = Contexts()
        self._allow = Patterns(self._config.allow, "registry.allow")
        self._deny = Patterns(self._config.deny, "registry.deny")
        check(self._config)

    def is_plain(self, host: str) -> bool:
        """Whether a registry is spoken to without TLS."""
        return host in self._plain_http or self._of(host).plain_http

    def upstreams(self, host: str) -> Upstreams:
        """Where the content of a registry ("docker.io" or "host[:port]") can be had."""
        settings = self._of(host)
        scheme = "http" if self.is_plain(host) else "https"
        origin = Upstream(URL(f"{scheme}://{HUB if host == 'docker.io' else host}"), host)
        return Upstreams(origin, _mirrors(host, settings))

    def requests_per_s(self, host: str) -> float:
        """Most requests a second, 0 for no cap."""
        return self._of(host).requests_per_s or self._config.requests_per_s

    def refusal(self, name: str) -> DeniedError | None:
        """Why an image ("host/repository") may not be had; None if it may."""
        if self._deny.match(name):
            return DeniedError(f"{name}: registry.deny forbids it; expected an image that is not listed there")
        if self._allow and not self._allow.match(name):
            return DeniedError(f"{name}: expected an image that registry.allow lists")
        return None

    def tls(self, url: URL, registry: str, *, certificate: bool = True) -> ssl.SSLContext:
        """The TLS context for a request to `url`, which `registry` is or has redirected to: a host of settings of its
        own gets these, another one trusts the registry's CAs and is shown no `certificate`. Raises ConfigError."""
        target = self._config.hosts.get(_authority(url, registry))
        settings = target or self._of(registry)
        files = TlsFiles(settings.ca or self._config.ca, settings.client_certificate, settings.client_key)
        if not certificate or (target is None and _authority(url, registry) != registry):
            files = TlsFiles(files.ca)
        return self._contexts.get(files)

    def proxy(self, url: URL, registry: str) -> URL | None:
        """The proxy of a request, as `tls`."""
        settings = self._config.hosts.get(_authority(url, registry)) or self._of(registry)
        return proxy_for(url, settings.proxy or self._config.proxy, self._environment)

    def _of(self, host: str) -> RegistryHost:
        return self._config.hosts.get(host, _NOTHING)


def check(config: RegistryConfig) -> None:
    """Refuse what cannot be right with a ConfigError that names the key; files are looked at when they are needed."""
    check_list(config.allow, "registry.allow")
    check_list(config.deny, "registry.deny")
    _check_proxy(config.proxy, "registry.proxy")
    for name in config.kubernetes_secrets:
        if name.count("/") != 1 or not all(name.split("/")):
            raise ConfigError(f"registry.kubernetes_secrets: expected namespace/name, got {name!r}")
    for host, settings in config.hosts.items():
        where = f'[registry.hosts."{host}"]'
        _check_proxy(settings.proxy, f"{where} proxy")
        _mirrors(host, settings)
        if settings.client_key and not settings.client_certificate:
            raise ConfigError(f"{where} client_key: expected client_certificate beside it")


def check_list(patterns: Sequence[str], where: str) -> None:
    """As `check`, of a list of images."""
    Patterns(patterns, where)


def _check_proxy(setting: str, where: str) -> None:
    if setting and setting != DIRECT and parse_proxy(setting, where).user is not None:
        raise ConfigError(f"{where}: expected no user or password here; put such a proxy into HTTPS_PROXY")


def _mirrors(host: str, settings: RegistryHost) -> list[Upstream]:
    where = f'[registry.hosts."{host}"] mirrors'
    return [parse_location(text, where, rewrites=settings.rewrite) for text in settings.mirrors]


def _authority(url: URL, registry: str) -> str:
    """The name by which settings know a URL's host: docker.io for the hub, a port that is not the default."""
    if url.host == HUB and registry == "docker.io":
        return registry
    host = url.host_subcomponent or ""
    return f"{host}:{url.explicit_port}" if url.explicit_port else host
