"""How registries are reached, who may have what they have, and how long a tag stands."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct


class RegistryHost(Struct, frozen=True, forbid_unknown_fields=True):
    """How one registry, or a host that it redirects to, is reached. What is empty is as in [registry]."""

    plain_http: bool = False
    ca: str = ""
    client_certificate: str = ""
    client_key: str = ""
    proxy: str = ""
    mirrors: tuple[str, ...] = ()
    rewrite: dict[str, str] = {}
    requests_per_s: Annotated[float, Meta(ge=0)] = 0.0


class RegistryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How registries are reached (docs/registries.md)."""

    docker_config: Annotated[
        str, Meta(description="docker config.json with credentials and credential helpers; empty: none")
    ] = ""
    pull_secrets: Annotated[
        tuple[str, ...], Meta(description="Kubernetes pull secrets as files, or directories of them")
    ] = ()
    kubernetes_secrets: Annotated[
        tuple[str, ...], Meta(description="pull secrets, namespace/name, read with this pod's service account")
    ] = ()
    ca: Annotated[str, Meta(description="PEM file of CAs trusted beside the system's; empty: none")] = ""
    proxy: Annotated[
        str, Meta(description='proxy, http://host:port, or "direct"; empty: HTTP_PROXY, HTTPS_PROXY and NO_PROXY')
    ] = ""
    allow: Annotated[
        tuple[str, ...], Meta(description="images that may be had, host/repository, * for anything; none: all")
    ] = ()
    deny: Annotated[tuple[str, ...], Meta(description="images that may not, as in `allow`, and before it")] = ()
    requests_per_s: Annotated[float, Meta(ge=0, description="most requests a second to one registry; 0: no cap")] = 0.0
    hosts: Annotated[
        dict[str, RegistryHost],
        Meta(
            description='one registry\'s own, [registry.hosts."host:port"]: plain_http, ca, client_certificate, '
            "client_key, proxy, mirrors, rewrite, requests_per_s"
        ),
    ] = {}


class AccessConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may have what (docs/registries.md)."""

    key_file: Annotated[
        str, Meta(description="file with the cluster's key, by which nodes know each other; empty: the network is")
    ] = ""
    shared: Annotated[
        tuple[str, ...],
        Meta(description="images that registry clients get with our own credentials, host/repository, * for anything"),
    ] = ()
    remember_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds that a registry's yes to a client is remembered")
    ] = 60.0
    outage_s: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds that it counts while the registry does not answer")
    ] = 600.0


class TagsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How long what a registry said of a tag stands, for those that pull through a mirror. Digests stand for ever."""

    ttl_s: Annotated[
        float, Meta(ge=0, le=31_536_000, description="seconds until the registry is asked about a tag again")
    ] = 60.0
    rules: Annotated[
        tuple[str, ...],
        Meta(description='"PATTERN=SECONDS" for tags like host/repository:tag; * and ? fit, the first one counts'),
    ] = ()
    stale_if_error_s: Annotated[
        float, Meta(ge=0, description="seconds that a tag stands at most while its registry does not answer")
    ] = 86_400.0

    def __post_init__(self) -> None:
        for rule in self.rules:
            if not re.fullmatch(r"\S+=[0-9]+(\.[0-9]+)?", rule):
                raise ValueError(f"rule {rule!r}: expected PATTERN=SECONDS, such as 'docker.io/library/*:latest=10'")

    @property
    def ttls(self) -> tuple[tuple[str, float], ...]:
        """The rules as (pattern, seconds)."""
        return tuple((pattern, float(seconds)) for pattern, _, seconds in (rule.rpartition("=") for rule in self.rules))
