"""vLLM's usual short answer, by one pattern: to read its headers one by one costs ten times as much. Pure.

The pattern leaves no choice of how to read a byte, so the parser would read the same; it reads all other answers. An
answer is usual if it is one read, with exactly these headers in this order (`vary` may be absent), as uvicorn writes
them.
"""

from __future__ import annotations

import re
from typing import Final

_HEAD: Final = re.compile(
    rb"HTTP/1\.1 200 OK\r\n"
    rb"(date: [A-Z][ -~]{25}GMT\r\n)"
    rb"server: uvicorn\r\n"
    rb"content-length: ([0-9]{1,9})\r\n"
    rb"(content-type: application/json\r\n(?:vary: Origin\r\n)?)"
    rb"\r\n"
)


def usual_answer(read: bytes) -> tuple[tuple[bytes, ...], bytes] | None:
    """The parts of a usual answer's header lines as a client gets them, and its body; None for any other read."""
    head = _HEAD.match(read)
    if head is None:
        return None
    date, length, rest = head.groups()
    body = read[head.end() :]
    return ((date, rest, b"content-length: ", length, b"\r\n"), body) if int(length) == len(body) else None
