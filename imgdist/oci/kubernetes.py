"""Kubernetes pull secrets, read from the API with the service account of this pod (RBAC: `get` on these secrets)."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from imgdist.errors import ConfigError, ImgdistError, TemporaryError
from imgdist.oci.credentials import Credentials
from imgdist.oci.dockerconfig import DockerConfig, parse
from imgdist.oci.tls import Contexts, TlsFiles

log = logging.getLogger("imgdist.oci")

KEEP_S = 60.0
"""How long a secret is kept; one that a registry refuses is read anew at once."""
REST_S = 5.0
"""How long it is not asked again while nothing of it is known: else those who wait would each wait for its silence."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 5.0
_SECRET_MAX = 2 << 20
"""Bytes of an answer; a secret has at most 1 MiB, in base64."""


class _Secret(msgspec.Struct):
    data: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Where the API answers (`url`), and the directory with `token` and `ca.crt` of the service account."""

    url: str
    account: Path

    @classmethod
    def of_this_pod(cls, environment: Mapping[str, str] = os.environ) -> ApiServer:
        """Raises ConfigError outside a pod."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (ACCOUNT / "token").exists():
            raise ConfigError(
                f"registry.kubernetes_secrets: expected to run in a pod with a service account, found no "
                f"KUBERNETES_SERVICE_HOST or no {ACCOUNT}/token; mount the secrets and use registry.pull_secrets"
            )
        return cls(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", ACCOUNT)


class KubernetesSecret:
    """A CredentialSource: the pull secret `name` ("namespace/name"). While the API does not answer, what it said last
    counts."""

    def __init__(
        self, name: str, server: ApiServer, http: aiohttp.ClientSession, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._server = server
        self._http = http
        self._clock = clock
        self._contexts = Contexts()
        self._known: DockerConfig | None = None
        self._error: ImgdistError | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def find(self, host: str, repository: str) -> Credentials | None:
        """As CredentialSource. Raises TemporaryError if the API does not answer, ConfigError if it refuses, or the
        secret is not there or none for registries."""
        async with self._lock:
            if self._clock() >= self._until:
                await self._refresh()
        if self._known is None:
            assert self._error is not None
            raise self._error.with_traceback(None)
        return self._known.find(host, repository)

    def refused(self, host: str, repository: str, credentials: Credentials) -> None:
        """As CredentialSource."""
        self._until = 0.0

    async def _refresh(self) -> None:
        try:
            self._known = await self._read()
        except ImgdistError as error:
            self._error = error
            if self._known is not None:
                log.warning("pull secret %s stays as it was: %s", self._name, error)
        self._until = self._clock() + (REST_S if self._known is None else KEEP_S)

    async def _read(self) -> DockerConfig:
        namespace, _, secret = self._name.partition("/")
        url = URL(self._server.url) / "api/v1/namespaces" / namespace / "secrets" / secret
        try:
            # Read each time: the kubelet renews it hourly.
            token = (self._server.account / "token").read_text(encoding="ascii").strip()
            authority = self._server.account / "ca.crt"
            tls = self._contexts.get(TlsFiles(str(authority))) if url.scheme == "https" else True
            async with asyncio.timeout(TIMEOUT_S):
                async with self._http.get(url, headers={"Authorization": f"Bearer {token}"}, ssl=tls) as answer:
                    raw = bytearray()
                    while len(raw) <= _SECRET_MAX and (piece := await answer.content.readany()):
                        raw += piece
                    status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            reason = type(error).__name__ if isinstance(error, ValueError) else str(error) or type(error).__name__
            raise TemporaryError(f"pull secret {self._name}: the Kubernetes API does not answer: {reason}") from None
        if status == 404:
            raise ConfigError(f"pull secret {self._name}: not found in the Kubernetes API; expected it there")
        if status in (401, 403):
            raise ConfigError(
                f"pull secret {self._name}: the Kubernetes API answers {status}; allow `get` on it by RBAC"
            )
        if status != 200:
            raise TemporaryError(f"pull secret {self._name}: the Kubernetes API answers {status}")
        return _document(bytes(raw), f"pull secret {self._name}")


def _document(raw: bytes, what: str) -> DockerConfig:
    try:
        data = msgspec.json.decode(raw, type=_Secret).data
        if ".dockerconfigjson" in data:
            return parse(base64.b64decode(data[".dockerconfigjson"], validate=True), what)
        if ".dockercfg" in data:  # the older kind: the entries alone
            return parse(b'{"auths": %b}' % base64.b64decode(data[".dockercfg"], validate=True), what)
    except (msgspec.DecodeError, ValueError):
        raise ConfigError(f"{what}: expected a Secret from the Kubernetes API") from None
    raise ConfigError(f"{what}: expected type kubernetes.io/dockerconfigjson, found keys {', '.join(data) or 'none'}")
