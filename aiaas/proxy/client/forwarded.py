"""The addresses that proxies write into `X-Forwarded-For` and `Forwarded` (RFC 7239), in the forms that they use.

    203.0.113.7               nginx, envoy, haproxy
    203.0.113.7:51234         Azure's Application Gateway, IIS
    2001:db8::7               nginx
    [2001:db8::7]:443         RFC 7239 section 6; the brackets also without a port
    "[2001:db8::7]:443"       quoted, as RFC 7239 wants it
    unknown, _hidden          RFC 7239 section 6.2 and 6.3: the proxy hides the address

Each proxy appends the address that it saw, so read hops from the right, and only as far as trusted proxies wrote them.
An element ends at every comma, also inside quotes: addresses do not contain commas, and a quote that a client leaves
open must not swallow the text that the proxy appends. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

_FOR: Final = re.compile(r'(?:^|;)\s*for\s*=\s*("?)([^";]*)\1\s*(?:;|$)', re.IGNORECASE)
_PORT: Final = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<bare>[0-9.]+))(?::[0-9]{1,5})?")
# Of an IPv4 client, where the port listens for both.
_MAPPED: Final = "::ffff:"
# Proxies between a client and a gateway; the client itself wrote the hops further left.
MAX_HOPS: Final = 32


def hops(forwarded_for: Sequence[str], forwarded: Sequence[str]) -> tuple[str | None, ...]:
    """The hops, the nearest first; None for an invalid address. `Forwarded` counts if `X-Forwarded-For` is absent.

    forwarded_for, forwarded  the values of all header lines of that name, in order
    """
    if forwarded_for:
        return tuple(hop_address(text) for text in _last_elements(forwarded_for))
    return tuple(_for_address(text) for text in _last_elements(forwarded))


def hop_address(text: str) -> str | None:
    """The plain address of one hop, without quotes, brackets and port; None if it is not an address."""
    text = text.strip().strip('"').strip()
    found = _PORT.fullmatch(text)
    return plain_address((found["bracketed"] or found["bare"]) if found else text)


def plain_address(text: str) -> str | None:
    """An IP address in its usual form, without a zone (`fe80::1%eth0`); None if `text` is not an address."""
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(ip, "ipv4_mapped", None)
    return str(mapped or ip)


def peer_address(name: tuple[Any, ...]) -> str:
    """The plain address in a TCP socket's name, as the kernel gives it: (host, port) means IPv4, which is plain."""
    host: str = name[0]
    if len(name) == 2:
        return host
    if host.startswith(_MAPPED) and "." in host:
        return host[len(_MAPPED) :]
    return plain_address(host) or host


def _last_elements(lines: Sequence[str]) -> list[str]:
    return ",".join(lines).rsplit(",", MAX_HOPS)[-MAX_HOPS:][::-1] if lines else []


def _for_address(element: str) -> str | None:
    found = _FOR.search(element)
    return hop_address(found[2]) if found else None
