"""The certificate of the TLS workload, and one checked echo over TLS."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

from bench.build import BUILD
from bench.servers import NotRunError

DIRECTORY = BUILD / "tls"


def make_certificate(directory: Path = DIRECTORY) -> None:
    """A self-signed certificate of localhost, made for this run. Raises NotRunError without openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NotRunError("openssl is not on PATH (Debian, Ubuntu: apt-get install openssl)")
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"),
            *("-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")),
        ],
        capture_output=True,
        check=True,
    )


def client_context(directory: Path = DIRECTORY) -> ssl.SSLContext:
    """A client that trusts that certificate and nothing else."""
    return ssl.create_default_context(cafile=str(directory / "cert.pem"))
