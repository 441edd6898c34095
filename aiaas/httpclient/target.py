"""The server under test: an address parsed from a URL, TLS that is verified by default, and request headers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aiaas import __version__
from aiaas.authorities import AuthoritiesError, trusting
from aiaas.errors import EnvironmentFault, UsageError


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """One address under test.

    url     for display: scheme, host, port and path, never a user or a password
    base    path before /v1, without a trailing slash
    tls     None for plain HTTP
    """

    url: str
    host: str
    port: int
    base: str
    tls: ssl.SSLContext | None = field(repr=False)

    def head(self, method: str, path: str, key: str | None) -> bytes:
        """Return the request line and the common headers; the caller appends its own headers and the empty line."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.tls else 80):
            host = f"{host}:{self.port}"
        authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
        return (
            f"{method} {self.base}{path} HTTP/1.1\r\nHost: {host}\r\n{authorization}"
            f"User-Agent: aiaas-loadtest/{__version__}\r\nAccept-Encoding: identity\r\n"
        ).encode("ascii")


def parse_target(url: str, *, ca: Path | None = None, insecure: bool = False) -> HttpTarget:
    """Parse a URL. A trailing /v1 is dropped: `http://host/v1` means `http://host`.

    Args:
        url: http:// or https://; http if the scheme is missing.
        ca: certificates to trust instead of the system's.
        insecure: accept any certificate.

    Raises:
        UsageError: not a server URL.
        EnvironmentFault: the certificate file cannot be read.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is not a server URL; write http://HOST:PORT or https://HOST")
    if not _is_plain(host) or not _is_plain(parts.path):
        raise UsageError(f"{url!r} contains characters that are not allowed in a URL; percent-encode them")
    if parts.username is not None or parts.password is not None:
        raise UsageError("the URL contains a user or a password; pass a key in --api-key-file or $AIAAS_API_KEY")
    tls = _context(ca, insecure) if parts.scheme == "https" else None
    port = port or (443 if tls else 80)
    base = parts.path.rstrip("/").removesuffix("/v1")
    shown = f"[{host}]" if ":" in host else host
    return HttpTarget(f"{parts.scheme}://{shown}:{port}{base}", host, port, base, tls)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _context(ca: Path | None, insecure: bool) -> ssl.SSLContext:
    try:
        context = trusting(ca)
    except AuthoritiesError as error:
        raise EnvironmentFault(str(error)) from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
