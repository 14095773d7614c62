"""HTTP to one registry: retries with back-off, a shared pause after 429, redirects, proxies, clear errors."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from yarl import URL

import imgdist
from imgdist.errors import ImgdistError, ProtocolError, TemporaryError

REDIRECTS_MAX = 10
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
CUT = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
"""What aiohttp raises when a connection breaks before or inside an answer."""


class Meter(Protocol):
    """Who counts what a registry costs."""

    def request(self, registry: str, status: str) -> None:
        """One request was answered with `status`, or "error" if it was not answered."""

    def received(self, registry: str, size_bytes: int) -> None:
        """Body bytes came from the registry or from where it redirected to."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long to try again. Times in seconds; a guess that bounds a dead registry to ~6 s."""

    attempts: int = 6
    connect_attempts: int = 3
    base_s: float = 0.2
    cap_s: float = 8.0
    retry_after_max_s: float = 60.0

    def delay_s(self, failures: int, error: TemporaryError, unreachable: bool, luck: float) -> float | None:
        """The wait after the n-th failure in a row (from 1), None: give up. `luck` in [0, 1) spreads the herd."""
        if failures >= (self.connect_attempts if unreachable else self.attempts):
            return None
        backoff = min(self.cap_s, self.base_s * 2 ** (failures - 1)) * (0.5 + luck / 2)
        asked = error.retry_after_s or 0.0
        return None if asked > self.retry_after_max_s else max(backoff, asked)


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header (RFC 9110 section 10.2.3: seconds or a date); None if there is none."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except ValueError:
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
    """Requests to the registry `host` and to where it redirects."""

    def __init__(self, host: str, http: aiohttp.ClientSession, meter: Meter, retry: Retry) -> None:
        self._host = host
        self._http = http
        self._meter = meter
        self._retry = retry
        self._quiet_until = 0.0

    async def open(self, method: str, url: URL, headers: Mapping[str, str], **body: Any) -> aiohttp.ClientResponse:
        """The answer to a request, of any status but those worth a retry. The caller closes it.

        Raises TemporaryError once the attempts are used up, ProtocolError for broken TLS, HTTP or redirects.
        """
        failures = 0
        while True:
            # 429 is about the registry, not about one request: all of them wait for its pause to end.
            await asyncio.sleep(max(0.0, self._quiet_until - time.monotonic()))
            try:
                return await self._attempt(method, url, headers, body)
            except _Unreachable as error:
                failures += 1
                await self.pause(failures, error, unreachable=True)
            except TemporaryError as error:
                failures += 1
                await self.pause(failures, error)

    async def pause(self, failures: int, error: TemporaryError, unreachable: bool = False) -> None:
        """Wait before the next attempt, or raise `error` if there shall be none."""
        delay_s = self._retry.delay_s(failures, error, unreachable, random.random())
        if delay_s is None:
            raise error
        await asyncio.sleep(delay_s)

    def received(self, size_bytes: int) -> None:
        """Count body bytes."""
        self._meter.received(self._host, size_bytes)

    async def _attempt(
        self, method: str, url: URL, headers: Mapping[str, str], body: dict[str, Any]
    ) -> aiohttp.ClientResponse:
        response = await self._follow(method, url, headers, body)
        if response.status not in RETRY_STATUS:
            return response
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), time.time())
        response.close()
        if response.status == 429 and retry_after_s is not None and retry_after_s <= self._retry.retry_after_max_s:
            self._quiet_until = max(self._quiet_until, time.monotonic() + retry_after_s)
        reason = "too many requests" if response.status == 429 else "a failure of its own"
        raise TemporaryError(f"{_shown(url)}: the registry answered {response.status}, {reason}", retry_after_s)

    async def _follow(
        self, method: str, url: URL, headers: Mapping[str, str], body: dict[str, Any]
    ) -> aiohttp.ClientResponse:
        target = url
        for _ in range(REDIRECTS_MAX):
            response = await self._send(method, target, headers, body)
            if response.status not in REDIRECT_STATUS:
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
                # Credentials are for the host that asked for them; object stores answer 400 to a second kind.
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            target = following
        raise ProtocolError(f"{_shown(url)}: more than {REDIRECTS_MAX} redirects")

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str], body: dict[str, Any]
    ) -> aiohttp.ClientResponse:
        status = "error"
        try:
            response = await self._http.request(
                method, url, headers=headers, allow_redirects=False, proxy=_proxy(url), **body
            )
            status = str(response.status)
            return response
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError) as error:
            raise _translated(url, error) from error
        finally:
            self._meter.request(self._host, status)


class Interrupted(TemporaryError):
    """An answer that began well and cannot be used: its body broke off, or storage behind a redirect refused it.
    Not tried again here, because only the caller knows where to go on."""


class _Unreachable(TemporaryError):
    """No connection came about: fewer attempts, because the answer is quick and rarely changes."""


def _translated(url: URL, error: Exception) -> ImgdistError:
    where = _shown(url)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return ProtocolError(
            f"{where}: TLS failed: {error}; for a registry without TLS give --plain-http {url.host}:{url.port}"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return _Unreachable(
            f"{where}: cannot connect: {os.strerror(number) if number and number > 0 else error.os_error}"
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


def _proxy(url: URL) -> str | None:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY (aiohttp's trust_env would also read passwords from ~/.netrc)."""
    if urllib.request.proxy_bypass(url.authority):
        return None
    return urllib.request.getproxies().get(url.scheme)
