"""TLS to registries: the system's CAs, those of a file, client certificates. Files are read again when they change."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from imgdist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, "" for none: further CAs, and the certificate and key that we show."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


class Contexts:
    """An SSL context for each set of files."""

    def __init__(self) -> None:
        self._made: dict[TlsFiles, tuple[tuple[int, ...], ssl.SSLContext]] = {}

    def get(self, files: TlsFiles) -> ssl.SSLContext:
        """The context, as the files are now. Raises ConfigError for one that cannot be read or is no PEM."""
        version = tuple(_version(path) for path in (files.ca, files.certificate, files.key) if path)
        made = self._made.get(files)
        if made is None or made[0] != version:
            made = self._made[files] = (version, _context(files))
        return made[1]


def _version(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this certificate file: {error.strerror}") from None


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if files.ca:
            context.load_verify_locations(files.ca)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"{files.ca}: expected certificates of CAs in PEM format") from None
    try:
        if files.certificate:
            # No prompt on the terminal for a key that has a password.
            context.load_cert_chain(files.certificate, files.key or None, password=lambda: "")
    except (ssl.SSLError, OSError):
        raise ConfigError(
            f"{files.certificate}, {files.key or 'no key file'}: expected a client certificate and its key in PEM "
            "format, without a password"
        ) from None
    return context
