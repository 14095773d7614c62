"""The registries that a supernode reads, one client each."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager

import aiohttp

from imgdist.oci.client import RegistryClient
from imgdist.oci.credentials import CredentialSource
from imgdist.oci.seen import SeenCredentials
from imgdist.oci.settings import RegistrySettings
from imgdist.oci.transport import Meter, Unwitnessed, Witness

CLIENTS_MAX = 1000
"""Registries whose tokens and health are remembered: whoever may use a mirror can name any host."""


class Registries:
    """Makes a registry's client when it is first needed.

    `credentials`: our own; `seen`: what clients showed; `witness` is told what registries deliver.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        meter: Meter,
        settings: RegistrySettings | None = None,
        credentials: CredentialSource | None = None,
        *,
        seen: SeenCredentials | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self.seen = seen or SeenCredentials()
        self._http = http
        self._meter = meter
        self._credentials = credentials
        self._witness = witness or Unwitnessed()
        self._clients: OrderedDict[str, RegistryClient] = OrderedDict()  # the last used at the end

    def client(self, host: str) -> RegistryClient:
        """The client of `host` ("docker.io" or "host[:port]")."""
        if host in self._clients:
            self._clients.move_to_end(host)
        else:
            self._clients[host] = RegistryClient(
                host,
                self._http,
                self._meter,
                settings=self.settings,
                credentials=self._credentials,
                seen=self.seen,
                witness=self._witness,
            )
            while len(self._clients) > CLIENTS_MAX:
                self._clients.popitem(last=False)
        return self._clients[host]

    def reading(self, name: str, digest: str) -> AbstractContextManager[None]:
        """As Witness.reading, for whoever says that a blob is on its way before its registry was asked."""
        return self._witness.reading(name, digest)
