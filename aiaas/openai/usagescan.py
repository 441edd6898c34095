"""Find the usage in a JSON answer of any length while the answer passes through, in bounded memory.

    scan = UsageScan()
    scan.feed(part)     # each part of the body, in order, cut anywhere
    scan.usage          # a TokenUsage once the answer's own `usage` has passed

vLLM writes `prompt_logprobs` and `prompt_token_ids` after `usage`, and they may be megabytes, so `usage` may be far
from both ends of a long body. Only a top-level key counts: `/v1/responses` repeats the request's tools, whose schemas
may have a property `usage`. Hence the scan tracks the depth of brackets.

Rules:
1. Python never looks at single bytes: searches, splits and counts run in C, at about 5 ms for each megabyte of objects
   and strings, and 1 ms for each megabyte of numbers.
2. Between two parts, keep less than a key, or the value of `usage` up to VALUE_MOST bytes.
3. Give up a body that is not a JSON object (a compressed body, for example) at its first byte.
"""

from __future__ import annotations

import json
from typing import ClassVar, Final

from aiaas.openai.usage import TokenUsage, billed_usage, usage_of

VALUE_MOST: Final = 16 * 1024  # bytes; vLLM's usage with all details takes a few hundred
_SPACE: Final = b" \t\r\n"
_JSON: Final = json.JSONDecoder()


class UsageScan:
    """The state of one body. `usage` is None until the body's usage has passed, and stays None if that is malformed.

    KEY    the key of the usage, and LEVEL the number of brackets that are open before it
    """

    KEY: ClassVar = b'"usage"'
    LEVEL: ClassVar = 1

    __slots__ = ("_begun", "_depth", "_in_text", "_over", "_rest", "_value", "usage")

    def __init__(self) -> None:
        self.usage: TokenUsage | None = None
        self._begun = False
        self._over = False
        self._depth = 0  # number of open brackets
        self._in_text = False  # a string is open
        self._rest = b""  # bytes not yet counted, perhaps the beginning of a key or an escape
        self._value: bytes | None = None  # the received part of the value of `usage`

    def feed(self, part: bytes) -> None:
        """Scan the next part of the body."""
        if self._over:
            return
        if not self._begun:
            part = part.lstrip(_SPACE)
            if not part:
                return
            self._begun = True
            self._over = not part.startswith(b"{")
        if self._value is not None:
            self._take(part)
        elif not self._over:
            self._search(self._rest + part)

    def _search(self, data: bytes) -> None:
        counted = search = 0
        key = self.KEY
        while (at := data.find(key, search)) >= 0:
            search = at + 1
            if _is_escaped(data, at, counted):
                continue
            behind = data[at + len(key) : at + len(key) + 64].lstrip(_SPACE)
            if not behind:  # only the next part shows whether this is a key
                self._count(data[counted:at])
                self._rest = data[at : at + len(key)]
                return
            self._count(data[counted:at])
            counted = at
            if self._depth == self.LEVEL and not self._in_text and behind.startswith(b":"):
                self._value = self._rest = b""
                self._take(data[at + len(key) :].lstrip(_SPACE)[1:])
                return
        end = max(counted, len(data) - len(key) + 1)
        while end < len(data) and _is_escaped(data, end, counted):
            end += 1
        if _is_escaped(data, end, counted):  # the last byte escapes the first byte of the next part
            end -= 1
        self._count(data[counted:end])
        self._rest = data[end:]

    def _count(self, part: bytes) -> None:
        """Count the brackets and quotes of a part that neither begins nor ends within an escape."""
        if part.find(b"\\") >= 0:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        bare = b"".join(pieces[1::2] if self._in_text else pieces[::2])
        if len(pieces) % 2 == 0:
            self._in_text = not self._in_text
        self._depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")

    def _take(self, part: bytes) -> None:
        """Append `part` to the value of `usage`; decode the value once it is whole."""
        assert self._value is not None
        value = self._value = (self._value + part[:VALUE_MOST]).lstrip(_SPACE)
        if value and not value.startswith(b"{"):  # null: this answer has no usage
            self._over = True
        elif value.find(b"}") >= 0:
            try:
                told, _ = _JSON.raw_decode(value.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                self._over = len(value) > VALUE_MOST
            else:
                self._over = True
                self.usage = self._read(told)
        else:
            self._over = len(value) > VALUE_MOST

    def _read(self, told: object) -> TokenUsage | None:
        return usage_of(json.dumps({"usage": told}).encode())


class BilledScan(UsageScan):
    """The same for an answer of `/v2/embed`, whose counts stand in `meta.billed_units`."""

    KEY: ClassVar = b'"billed_units"'
    LEVEL: ClassVar = 2

    __slots__ = ()

    def _read(self, told: object) -> TokenUsage | None:
        return billed_usage(told)


def _is_escaped(data: bytes, at: int, start: int) -> bool:
    """Whether a backslash makes the byte at `at` part of an escape. `start` is not inside an escape."""
    near = max(start, at - _NEAR)
    backslashes = _trailing(data[near:at])
    if backslashes == at - near > 0:
        backslashes = _trailing(data[start:at])
    return backslashes % 2 == 1


def _trailing(data: bytes) -> int:
    """The number of backslashes at the end of `data`."""
    return len(data) - len(data.rstrip(b"\\"))


_NEAR: Final = 64  # bytes; a run of backslashes is nearly always shorter
