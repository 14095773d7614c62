"""Certificates for tests, made by openssl(1): a CA, a server's for this machine's names, a client's."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

from parts import require

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"


class Certificates:
    """Files below `directory`: `ca`, and what `issue` makes."""

    def __init__(self, directory: Path) -> None:
        require(shutil.which("openssl"), "openssl")
        self._directory = directory
        self.ca, self._ca_key = directory / "ca.pem", directory / "ca.key"
        _openssl("req", "-x509", *_KEY, "-keyout", self._ca_key, "-out", self.ca, "-subj", "/CN=test CA", "-days", "2")

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        request, names = self._directory / f"{name}.csr", self._directory / "names"
        names.write_text(_NAMES)
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        issued = ("-CA", self.ca, "-CAkey", self._ca_key, "-CAcreateserial", "-days", "2", "-extfile", names)
        _openssl("x509", "-req", "-in", request, "-out", certificate, *issued)
        return certificate, key

    def server(self, *, asks: bool = False) -> ssl.SSLContext:
        """A server's context; with `asks`, clients need a certificate of this CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server"))
        if asks:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
