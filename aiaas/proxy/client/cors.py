"""Cross-origin requests: which web pages may call the gateway from a browser (WHATWG Fetch, "CORS protocol").

A browser asks first (the preflight: OPTIONS, without a key), then sends the request with its key, and shows the page an
answer only where `access-control-allow-origin` names it. So the header stands on every answer, errors and streams too,
and on the refusal of a head whose Origin could be read: without it a page sees "network error" where it should see 429.
Credentials in the browser's sense (cookies) are never allowed; a key that the page itself puts into `Authorization` is
not one of these credentials.

Requests without an allowed origin are answered as if CORS were off. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiaas.proxy.client.answers import VARY

ANY: Final = "*"
# Headers that a page may read besides the content type: those that the SDKs use.
EXPOSED: Final = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-aiaas-class",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "x-aiaas-queue-position",
)
# Seconds for which a browser remembers a preflight: long enough to matter, short enough that a changed config does.
MAX_AGE: Final = 600
# Header names, as a preflight lists them. The SDKs send a dozen of their own (x-stainless-*), so all are allowed.
_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2048}")

_EXPOSE: Final = b"access-control-expose-headers: %b\r\n" % ", ".join(EXPOSED).encode()


class Cors:
    """The allowed origins of one Plan, as complete header lines."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        any_origin = ANY in origins
        self._lines = {
            origin: b"access-control-allow-origin: %b\r\n%b%b" % (origin.encode(), _EXPOSE, VARY) for origin in origins
        }
        self._of_any = b"access-control-allow-origin: *\r\n" + _EXPOSE if any_origin else None

    def lines(self, origin: str | None) -> bytes:
        """Header lines for an answer to `origin`. A cache must not give one origin's answer to another."""
        if self._of_any is not None:
            return self._of_any
        return self._lines.get(origin or "", VARY)

    def is_preflight(self, method: str, headers: Mapping[str, str]) -> bool:
        """Whether a browser asks for an allowed origin; `headers` are looked up in lower case."""
        if method != "OPTIONS" or "access-control-request-method" not in headers:
            return False
        origin = headers.get("origin")
        return origin is not None and (self._of_any is not None or origin in self._lines)


def preflight_lines(methods: tuple[str, ...], asked: str) -> bytes:
    """Allow `methods` and the headers in `asked`, if these are valid names."""
    names = asked.encode() if _NAMES.fullmatch(asked) else b""
    return b"access-control-allow-methods: %b\r\n%baccess-control-max-age: %d\r\n" % (
        ", ".join(methods).encode(),
        b"access-control-allow-headers: %b\r\n" % names if names else b"",
        MAX_AGE,
    )
