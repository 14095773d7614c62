"""HTTP to one registry: retries with back-off, a shared budget, redirects, proxies, TLS, clear errors."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import ssl
import time
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from yarl import URL

import imgdist
from imgdist.errors import ConfigError, ImgdistError, ProtocolError, TemporaryError
from imgdist.oci.budget import Budget
from imgdist.oci.settings import RegistrySettings

REDIRECTS_MAX = 10
BUDGETS_MAX = 100
"""Hosts with a budget of their own: a registry may name a token server for each repository."""
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
CUT = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
"""What aiohttp raises when a connection breaks before or inside an answer."""
_SECONDS = re.compile(r"[0-9]+")
_RETRY_AFTER_MAX_S = 1e9
"""Thirty years: what is handed on stays a number of seconds."""


class Meter(Protocol):
    """Who counts what a registry costs."""

    def request(self, registry: str, status: str) -> None:
        """One request was answered with `status`, or "error" if it was not answered."""

    def received(self, registry: str, size_bytes: int) -> None:
        """Body bytes came from the registry or from where it redirected to."""

    def retried(self, registry: str, reason: str) -> None:
        """Something is asked again, or elsewhere, and why: a key of `REASONS`."""


class Witness(Protocol):
    """Who is told what a registry itself has delivered; `name` is "host/repository"."""

    def reading(self, name: str, digest: str) -> AbstractContextManager[None]:
        """Bytes of a blob are on their way from there, as long as the block lasts."""

    def delivered(self, name: str, digest: str) -> None:
        """All bytes have come from there, and have that digest."""


class Unwitnessed:
    """For those to whom it does not matter."""

    def reading(self, name: str, digest: str) -> AbstractContextManager[None]:
        """Nobody is told."""
        return nullcontext()

    def delivered(self, name: str, digest: str) -> None:
        """Nobody is told."""


REASONS = {
    "busy": "the registry answered 429",
    "server": "the registry answered 408 or 5xx",
    "connect": "no connection came about",
    "broken": "the connection broke, or nothing came in time",
    "cut": "a body broke off; it is resumed where it ended",
    "expired_url": "storage refused the address that the registry had sent us to; the registry gives another one",
    "unauthorized": "the registry refused a token, or wanted one: it is renewed",
    "no_range": "a resumed body came from its start: what was there is read again",
    "mirror": "a mirror failed, or has it not; the next one or the registry itself is asked",
}


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long to try again. Times in seconds; a guess that bounds a dead registry to ~6 s."""

    attempts: int = 6
    connect_attempts: int = 3
    busy_attempts: int = 20
    base_s: float = 0.2
    cap_s: float = 8.0
    retry_after_max_s: float = 60.0

    def delay_s(self, failures: int, error: TemporaryError, unreachable: bool, luck: float) -> float | None:
        """The wait after the n-th failure in a row (from 1), None: give up. `luck` in [0, 1) spreads the herd."""
        attempts = self.busy_attempts if isinstance(error, BusyError) else self.attempts
        if failures >= (self.connect_attempts if unreachable else attempts):
            return None
        backoff = min(self.cap_s, self.base_s * 2 ** (failures - 1)) * (0.5 + luck / 2)
        asked = error.retry_after_s or 0.0
        return None if asked > self.retry_after_max_s else max(backoff, asked)


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header (RFC 9110 section 10.2.3: seconds or a date); None if there is none."""
    if not text:
        return None
    if _SECONDS.fullmatch(text.strip()):
        return min(float(text), _RETRY_AFTER_MAX_S)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def session() -> aiohttp.ClientSession:
    """A session as the transport needs it: no cookies, bodies as sent, time-outs for silence but not for size."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"imgdist/{imgdist.__version__}", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30),
        read_bufsize=1 << 20,
    )


class Transport:
    """Requests to the registry `host`, its mirrors and its token server, each with a budget, and to where they
    redirect."""

    def __init__(
        self,
        host: str,
        http: aiohttp.ClientSession,
        meter: Meter,
        retry: Retry,
        settings: RegistrySettings | None = None,
    ) -> None:
        self._host = host
        self._http = http
        self._meter = meter
        self._retry = retry
        self._settings = settings or RegistrySettings()
        self._budgets: dict[URL, Budget] = {}

    async def open(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        retry: Retry | None = None,
        follow: bool = True,
        certificate: bool = True,
        **body: Any,
    ) -> aiohttp.ClientResponse:
        """The answer to a request, of any status but those worth a retry, and of none of a redirect unless told not to
        `follow`. Without `certificate` ours is not shown. The caller closes it.

        Raises TemporaryError once the attempts (of `retry`, else those of all requests) are used up, ProtocolError for
        broken TLS, HTTP or redirects.
        """
        retry = retry or self._retry
        budget = self._budget(url.origin())
        failures = 0
        while True:
            wait_s = budget.take(time.monotonic())
            if wait_s > retry.retry_after_max_s:
                raise BusyError(f"{_shown(url)}: {self._host} wants a pause after too many requests", wait_s)
            await asyncio.sleep(wait_s)
            try:
                sending = self._follow(method, url, headers, body, REDIRECTS_MAX if follow else 0, certificate)
                return await self._attempt(url, sending, retry, budget)
            except TemporaryError as error:
                failures += 1
                await self._pause(failures, error, retry, isinstance(error, _Unreachable))

    def _budget(self, origin: URL) -> Budget:
        budget = self._budgets.pop(origin, None) or Budget(self._settings.requests_per_s(self._host))
        self._budgets[origin] = budget
        if len(self._budgets) > BUDGETS_MAX:
            del self._budgets[next(iter(self._budgets))]
        return budget

    async def pause(self, failures: int, error: TemporaryError) -> None:
        """Wait before the next attempt, or raise `error` if there shall be none."""
        await self._pause(failures, error, self._retry, unreachable=False)

    def received(self, size_bytes: int) -> None:
        """Count body bytes."""
        self._meter.received(self._host, size_bytes)

    def retried(self, reason: str) -> None:
        """Count what is asked again."""
        self._meter.retried(self._host, reason)

    async def _pause(self, failures: int, error: TemporaryError, retry: Retry, unreachable: bool) -> None:
        delay_s = retry.delay_s(failures, error, unreachable, random.random())
        if delay_s is None:
            raise error
        self.retried(_reason(error))
        # The budget keeps everyone waiting for a registry that said when: nothing to add to that.
        await asyncio.sleep(0 if isinstance(error, BusyError) else delay_s)

    async def _attempt(
        self, url: URL, sending: Coroutine[Any, Any, aiohttp.ClientResponse], retry: Retry, budget: Budget
    ) -> aiohttp.ClientResponse:
        response = await sending
        if response.status not in RETRY_STATUS:
            budget.answered()
            return response
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), time.time())
        response.close()
        if response.status != 429:
            words = f"{_shown(url)}: the registry answered {response.status}, a failure of its own"
            raise _ServerError(words, retry_after_s)
        if retry_after_s is None or retry_after_s <= retry.retry_after_max_s:
            budget.refused(time.monotonic(), retry_after_s)
        raise BusyError(f"{_shown(url)}: the registry answered 429, too many requests", retry_after_s)

    async def _follow(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: dict[str, Any],
        redirects: int,
        certificate: bool,
    ) -> aiohttp.ClientResponse:
        target = url
        for _ in range(max(1, redirects)):
            response = await self._send(method, target, headers, body, certificate)
            if response.status not in REDIRECT_STATUS or not redirects:
                return response
            location = response.headers.get("Location", "")
            response.close()
            try:
                # encoded: requoting a presigned URL would break its signature
                following = target.join(URL(location, encoded=True))
            except ValueError:
                following = URL()
            if not location or following.scheme not in ("http", "https") or not following.host:
                raise ProtocolError(f"{_shown(target)}: redirect without a usable Location")
            if following.origin() != target.origin():
                if body:
                    raise ProtocolError(f"{_shown(target)}: redirects what was posted, a secret, to another host")
                # Credentials are for the host that asked for them; object stores answer 400 to a second kind.
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            target = following
        raise ProtocolError(f"{_shown(url)}: more than {REDIRECTS_MAX} redirects")

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str], body: dict[str, Any], certificate: bool
    ) -> aiohttp.ClientResponse:
        status = "error"
        try:
            tls = self._settings.tls(url, self._host, certificate=certificate) if url.scheme == "https" else True
            proxy = self._settings.proxy(url, self._host)
            response = await self._http.request(
                method, url, headers=headers, allow_redirects=False, proxy=proxy, ssl=tls, **body
            )
            status = str(response.status)
            return response
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError) as error:
            raise _translated(url, error) from error
        except ValueError as error:  # a host that no name server can be asked for, a header that cannot be sent
            raise ProtocolError(f"{_shown(url)}: cannot be asked for: {type(error).__name__}") from error
        finally:
            self._meter.request(self._host, status)


class Interrupted(TemporaryError):
    """An answer that began well and cannot be used: its body broke off, or storage behind a redirect refused it.
    Not tried again here, because only the caller knows where to go on."""


class ExpiredError(Interrupted):
    """Storage behind a redirect refused the address: a presigned URL that expired before it was used."""


class BusyError(TemporaryError):
    """The registry answers 429: it is asked again when its pause is over, more often than what fails."""


class _ServerError(TemporaryError):
    """The registry answered that it failed."""


class _Unreachable(TemporaryError):
    """No connection came about: fewer attempts, because the answer is quick and rarely changes."""


def _reason(error: TemporaryError) -> str:
    """Why something is asked again, a key of REASONS."""
    kinds = ((BusyError, "busy"), (_ServerError, "server"), (_Unreachable, "connect"), (ExpiredError, "expired_url"))
    kind = next((reason for kind, reason in kinds if isinstance(error, kind)), None)
    return kind or ("cut" if isinstance(error, Interrupted) else "broken")


def _translated(url: URL, error: Exception) -> ImgdistError:
    where = _shown(url)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return ProtocolError(
            f"{where}: TLS failed: {error}; for a registry without TLS give --plain-http {url.host}:{url.port}"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ConfigError(f"{where}: the proxy answered {error.status} {error.message}; expected 200")
    if isinstance(error, aiohttp.ClientConnectorError):
        via = " to the proxy" if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        number = error.os_error.errno
        return _Unreachable(
            f"{where}: cannot connect{via}: {os.strerror(number) if number and number > 0 else error.os_error}"
        )
    if isinstance(error, TimeoutError):
        return TemporaryError(f"{where}: no answer in time")
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
        return TemporaryError(f"{where}: the connection broke: {error or type(error).__name__}")
    return ProtocolError(f"{where}: not a valid HTTP answer: {error}")


def cut(url: URL, error: Exception) -> Interrupted:
    """The error of a body that broke off."""
    return Interrupted(f"{_shown(url)}: the connection broke inside the body: {error or type(error).__name__}")


def _shown(url: URL) -> str:
    """A URL for messages: without its query, which may hold a signature."""
    return str(url.with_query(None).with_user(None))
