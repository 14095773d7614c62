"""The registries that a supernode reads, one client each."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

from imgdist.oci.client import RegistryClient
from imgdist.oci.credentials import CredentialSource
from imgdist.oci.seen import SeenCredentials
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import Meter


class Registries:
    """Makes a registry's client when it is first needed.

    `credentials`: our own; `seen`: what clients showed. `delivered(name, digest)` is told what a registry has delivered
    whole, `name` being "host/repository".
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        meter: Meter,
        settings: RegistrySettings | None = None,
        credentials: CredentialSource | None = None,
        *,
        seen: SeenCredentials | None = None,
        delivered: Callable[[str, str], None] = lambda name, digest: None,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self.seen = seen or SeenCredentials()
        self._http = http
        self._meter = meter
        self._credentials = credentials
        self._delivered = delivered
        self._clients: dict[str, RegistryClient] = {}

    def client(self, host: str) -> RegistryClient:
        """The client of `host` ("docker.io" or "host[:port]")."""
        if host not in self._clients:
            self._clients[host] = RegistryClient(
                host,
                self._http,
                self._meter,
                settings=self.settings,
                credentials=self._credentials,
                seen=self.seen,
                delivered=lambda repository, digest: self._delivered(f"{host}/{repository}", digest),
            )
        return self._clients[host]
