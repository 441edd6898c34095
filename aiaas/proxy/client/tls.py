"""TLS on the client port: one listening context, whose certificate is replaced when its files change.

OpenSSL cannot load a new certificate and a new key into a context in one step: if the key does not fit, the certificate
is already loaded. So each new pair gets a context of its own, and the listening one points every handshake at the
newest good context (OpenSSL calls the server-name callback in each, also if the client names no server). Open
connections keep the pair that they began with.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from aiaas.errors import EnvironmentFault
from aiaas.plan.model import TlsPlan
from aiaas.proxy.client.certificate import Validity, validity

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# Seconds until the transport cuts a closed connection whose client does not answer close_notify. The last bytes of an
# answer need time, too: with 30 s a client that reads 2 kB a second lost them. A client that reads nothing is dropped
# earlier (`liveness.py`).
SHUTDOWN_TIMEOUT: Final = 120.0


class TlsError(Exception):
    """The pair cannot be used; the text is one line with the file and the reason."""


class TlsFileMissing(TlsError):
    """One of the files does not exist."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its key, ready for handshakes. `pem` is the certificate file's text."""

    context: ssl.SSLContext = field(repr=False)
    pem: str = field(repr=False)
    validity: Validity


def files_of(plan: TlsPlan) -> tuple[Path, Path]:
    """The files to be watched."""
    return (plan.cert_file, plan.key_file)


def read_pair(plan: TlsPlan) -> Pair:
    """Read both files. Raises TlsError. Blocks for as long as the disk takes."""
    pem = _read(plan.cert_file)
    key = _read(plan.key_file)
    try:
        valid = validity(pem)
    except ValueError as error:
        raise TlsError(f"{plan.cert_file} {error}") from error
    if "PRIVATE KEY-----" not in key:
        raise TlsError(f"{plan.key_file} does not contain a PEM private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[plan.min_version]
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(plan.cert_file, plan.key_file, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{plan.key_file} is not the key of the certificate in {plan.cert_file}") from error
        raise TlsError(f"{plan.cert_file} and {plan.key_file} cannot be used: {error.reason or error}") from error
    except OSError as error:  # replaced between the two readings
        raise TlsError(f"{plan.cert_file} and {plan.key_file} cannot be read: {error.strerror}") from error
    return Pair(context, pem, valid)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise TlsFileMissing(f"{file} does not exist") from error
    except OSError as error:
        raise TlsError(f"{file} cannot be read: {error.strerror}") from error


def _refuse_password() -> NoReturn:
    """Called for an encrypted key; without it OpenSSL would ask at the terminal."""
    raise TlsError("the private key is encrypted; store it without a passphrase")


class ServerTls:
    """The pair in force. `context` is what listens."""

    def __init__(self, plan: TlsPlan, pair: Pair) -> None:
        self.plan = plan
        self._pair = pair
        self.context = pair.context
        self.context.sni_callback = self._choose

    def __repr__(self) -> str:
        return f"<ServerTls {self.plan.cert_file}>"

    @property
    def validity(self) -> Validity:
        """The validity of the certificate in force."""
        return self._pair.validity

    def use(self, plan: TlsPlan, pair: Pair) -> bool:
        """Put `pair`, read from `plan`'s files, in force for new connections. False if it is in force already."""
        self.context.minimum_version = _VERSIONS[plan.min_version]
        self.plan = plan
        if pair.pem == self._pair.pem:
            return False
        self._pair = pair
        return True

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._pair.context


def open_tls(plan: TlsPlan | None) -> ServerTls | None:
    """At start; None without TLS. Raises EnvironmentFault if the files cannot be used."""
    if plan is None:
        return None
    try:
        return ServerTls(plan, read_pair(plan))
    except TlsError as error:
        raise EnvironmentFault(f"cannot use server.tls: {error}") from error
