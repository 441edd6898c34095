"""Read a request of the usual shape without the parser, whose cost is mostly that of the unusual ones. Pure.

Theory. Two readers that see a request's length differently are what smuggling lives on. So nothing is decided here that
the parser could decide otherwise: a request is plain only if every byte of its head is of a shape that leaves no
choice, and the parser reads all others. `tests/proxy/client/test_plain.py` compares the two.

A plain request is one read, from its first byte to the last byte of its body:

    POST, a path of the API as the gateway spells it, maybe behind the prefix, HTTP/1.1
    lines of `Name: value`, each ending with CR LF: a name of letters, digits and hyphens, one space, a value of
    printable ASCII without a space at its ends; no name twice
    a Host, which the caller checks; a Content-Length, in digits, that is the body's
    no header that changes how the message is read (DECIDING); Connection only as `keep-alive`
    a body of JSON
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiaas.proxy.client.refusal import MAX_HEADERS

_FIELD: Final = re.compile(r"(?m)^([A-Za-z0-9-]+): (?! )([ -~]+)(?<! )\r\n")
# Headers that decide where a message ends or what follows it, that ask for an answer before the body, or that the
# parser refuses.
DECIDING: Final = frozenset(
    {"transfer-encoding", "upgrade", "proxy-connection", "expect", "sec-websocket-key1", "content-encoding"}
)


def plain_request(read: bytes, most: int, first_lines: Mapping[bytes, str]) -> tuple[str, dict[str, str], bytes] | None:
    """The path, the headers by name in lower case, and the body of a plain request; None for any other read.

    most         bytes that the head may have
    first_lines  the first line of a plain request -> its path (`PrefixedPaths.lines`)
    """
    if read[:5] != b"POST ":
        return None
    head, found, body = read.partition(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    path = first_lines.get(line)
    if path is None or not found or len(head) + len(found) > most or not rest.isascii():
        return None
    lines = rest.decode() + "\r\n"
    fields: list[tuple[str, str]] = _FIELD.findall(lines)
    # Each match is a whole line, and there are as many line ends: so there is no other line.
    if len(fields) != lines.count("\n") or len(fields) > MAX_HEADERS:
        return None
    headers: dict[str, str] = {}
    for name, value in fields:
        headers[name.lower()] = value
    is_plain = (
        len(headers) == len(fields)
        and "host" in headers
        and "content-length" in headers
        and headers["content-length"] == str(len(body))
        and "content-type" in headers
        and headers["content-type"] == "application/json"
        and ("connection" not in headers or headers["connection"] == "keep-alive")
        and DECIDING.isdisjoint(headers)
    )
    return (path, headers, body) if is_plain else None
