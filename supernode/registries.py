"""The registries that a supernode reads, one client each."""

from __future__ import annotations

from collections.abc import Callable, Collection

import aiohttp

from imgdist.oci.client import RegistryClient
from imgdist.oci.credentials import Credentials
from imgdist.oci.transport import Meter


class Registries:
    """Makes a registry's client when it is first needed. `plain_http` are the hosts without TLS."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        meter: Meter,
        plain_http: Collection[str],
        credentials: Callable[[str], Credentials | None],
    ) -> None:
        self._http = http
        self._meter = meter
        self._plain_http = frozenset(plain_http)
        self._credentials = credentials
        self._clients: dict[str, RegistryClient] = {}

    def client(self, host: str) -> RegistryClient:
        """The client of `host` ("docker.io" or "host[:port]")."""
        if host not in self._clients:
            self._clients[host] = RegistryClient(
                host,
                self._http,
                self._meter,
                plain_http=host in self._plain_http,
                credentials=self._credentials,
            )
        return self._clients[host]
