"""Where the load goes: an address out of a URL, TLS that is verified unless told otherwise, a request's head."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aiaas import __version__
from aiaas.errors import EnvironmentFault, UsageError


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """One address under test.

    url     as shown: scheme, host, port and path, never a user or a password
    base    path in front of /v1, without a slash at its end
    tls     None for plain HTTP
    """

    url: str
    host: str
    port: int
    base: str
    tls: ssl.SSLContext | None = field(repr=False)

    def head(self, method: str, path: str, key: str | None) -> bytes:
        """The head of a request to `path`, up to where its last headers and the empty line go."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.tls else 80):
            host = f"{host}:{self.port}"
        authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
        return (
            f"{method} {self.base}{path} HTTP/1.1\r\nHost: {host}\r\n{authorization}"
            f"User-Agent: aiaas-loadtest/{__version__}\r\nAccept-Encoding: identity\r\n"
        ).encode("ascii")


def parse_target(url: str, *, ca: Path | None = None, insecure: bool = False) -> HttpTarget:
    """The target of a URL. A path of /v1 at its end is taken as meant: `http://host/v1` is `http://host`.

    Args:
        url: http:// or https://; without a scheme http.
        ca: certificates to trust instead of the system's.
        insecure: accept any certificate.

    Raises:
        UsageError: it is no URL of a server.
        EnvironmentFault: the file of certificates cannot be read.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no URL of a server; write http://HOST:PORT or https://HOST")
    if not _is_plain(host) or not _is_plain(parts.path):
        raise UsageError(f"{url!r} holds characters that no URL has; write them percent-encoded")
    if parts.username is not None or parts.password is not None:
        raise UsageError("the URL holds a user or a password; a key goes into --api-key-file or $AIAAS_API_KEY")
    tls = _context(ca, insecure) if parts.scheme == "https" else None
    port = port or (443 if tls else 80)
    base = parts.path.rstrip("/").removesuffix("/v1")
    shown = f"[{host}]" if ":" in host else host
    return HttpTarget(f"{parts.scheme}://{shown}:{port}{base}", host, port, base, tls)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _context(ca: Path | None, insecure: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except ssl.SSLError as error:
        raise EnvironmentFault(f"{ca}: holds no certificates that can be read (PEM)") from error
    except OSError as error:
        raise EnvironmentFault(f"{ca}: {error.strerror}") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
