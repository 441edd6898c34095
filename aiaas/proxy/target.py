"""The request target -> the path that it asks for (RFC 9112 section 3.2). Pure.

    /v1/models?x=1                 /v1/models     origin-form, as nearly all are
    http://host/v1/models          /v1/models     absolute-form, as clients of a proxy write it: a server must take it
    http://host                    /              (RFC 9112 section 3.2.4)
    host:443, *                    None           authority-form and asterisk-form: there is nothing to serve at them

The authority is ignored like the Host header: the Plan alone says where a request goes (CVE-2026-49468 of another
gateway was a Host that chose the route).
"""

from __future__ import annotations


def path_of(target: str) -> str | None:
    """The path without its query, None where the target is neither a path nor an http(s) URL."""
    if target[:1] == "/":
        return target.partition("?")[0]
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        return None
    before_query = rest.partition("?")[0]
    _, slash, path = before_query.partition("/")
    return slash + path or "/"
