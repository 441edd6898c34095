"""The request target -> the path that it asks for (RFC 9112 section 3.2). Pure.

    /v1/models?x=1                 /v1/models     origin-form, as nearly all are
    /v1/models/                    /v1/models     vLLM redirects clients to the path without slashes at its end
    http://host/v1/models          /v1/models     absolute-form, as clients of a proxy write it: a server must take it
    http://host                    /              (RFC 9112 section 3.2.4)
    host:443, *                    None           authority-form and asterisk-form, which the gateway does not serve

The authority is ignored like the Host header: the Plan alone says where a request goes (CVE-2026-49468 of another
gateway was a Host that chose the route). Both must be valid, though (RFC 9112 section 3.2): `uri-host [":" port]`. Two
rules are stricter than the grammar. An empty name is refused, since no http URI has one (RFC 9110 section 4.2.1); a
comma is refused, since it may come from two Host headers that somebody joined.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

from aiaas.openai import paths

_AUTHORITY = re.compile(
    r"(?:"
    r"(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+"  # reg-name, which IPv4 addresses are, too
    r"|\[(?P<ipv6>[0-9A-Fa-f:.]+)\]"
    r"|\[[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+;=:-]+\]"  # an address of a version to come
    r")"
    r"(?::(?P<port>[0-9]*))?"
)
_MAX_PORT = 65535
_SERVED = frozenset({*paths.GENERATE, paths.MODELS, paths.HEALTH, paths.READY, paths.METRICS})
_AUTHORITY_END = re.compile("[/?#]")


def is_authority(text: str) -> bool:
    """Whether `text` is valid as a Host header: `name`, `[::1]`, either with `:port`."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return False
    port = found["port"]
    if port and (len(port) > len("065535") or int(port) > _MAX_PORT):
        return False
    if found["ipv6"] is not None:
        try:
            IPv6Address(found["ipv6"])
        except AddressValueError:
            return False
    return True


def is_valid(target: str, method: str) -> bool:
    """Whether the host in `target` is valid, where there is one. CONNECT needs a port, too (RFC 9110 section 9.3.6)."""
    if method == "CONNECT":
        return is_authority(target) and target[-1].isdigit() and ":" in target.rpartition("]")[2]
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        return True
    return is_authority(_AUTHORITY_END.split(rest, maxsplit=1)[0])


def path_of(target: str) -> str | None:
    """The path without its query; a path of the gateway also without slashes at its end.

    None where the target is neither a path nor an http(s) URL.
    """
    if target in _SERVED:  # nearly always
        return target
    if target[:1] == "/":
        return _plain(target.partition("?")[0])
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        return None
    before_query = rest.partition("?")[0]
    _, slash, path = before_query.partition("/")
    return _plain(slash + path or "/")


def _plain(path: str) -> str:
    if path[-1:] != "/":
        return path
    plain = path.rstrip("/")
    return plain if plain in _SERVED else path
