"""Certificates for servers that tests speak TLS with, and for their authorities."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

_EC: Final = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test"]
# `openssl ca` takes dates, `openssl req` only days from now on.
_CONFIG: Final = """[ca]
default_ca = ca_default
[ca_default]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = policy
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
basicConstraints = critical,CA:true
"""


def _openssl(*arguments: str | Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    subprocess.run([openssl, *arguments], check=True, capture_output=True)


def self_signed(folder: Path, name: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate for `name` in `folder`, and its key; a client that trusts the one file trusts it."""
    made = folder / "cert.pem", folder / "key.pem"
    names = ["-addext", f"subjectAltName={name}"]
    _openssl("req", "-x509", *_EC, "-days", "2", *names, "-out", made[0], "-keyout", made[1])
    return made


def authority_until(ends: datetime, folder: Path) -> bytes:
    """The certificate of an authority that ends then, in PEM; its other files are left in `folder`."""
    (folder / "index.txt").write_text("")
    (folder / "openssl.cnf").write_text(_CONFIG.format(folder=folder))
    request, key, made = (folder / name for name in ("request.pem", "request.key", "authority.pem"))
    _openssl("req", "-new", *_EC, "-out", request, "-keyout", key)
    dates = ["-startdate", "20200101000000Z", "-enddate", f"{ends:%Y%m%d%H%M%SZ}"]
    files = ["-config", folder / "openssl.cnf", "-keyfile", key, "-in", request, "-out", made]
    _openssl("ca", "-batch", "-notext", "-selfsign", *dates, *files)
    return made.read_bytes()
