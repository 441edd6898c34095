"""The same prompt prefix to the same replica, so that vLLM's prefix cache hits (`balance: prefix_hash`). Pure.

The prefix (`prompt_prefix`) is the value of `messages`, `prompt` or `input`, whichever comes first in the
body, up to the end of its first message from the user, and PREFIX_BYTES at the most. So all turns of a conversation
have the same prefix, and so have all chats whose system prompt alone is longer than that. A pattern over a few KiB
finds it; the body is not decoded. A wrong guess costs a cache miss and nothing else.

The replica (`weights`) follows from rendezvous hashing (Thaler and Ravishankar 1998). Each endpoint has a weight for a
prefix, made from its URL, and the heaviest is asked first. When an endpoint goes, only its own prefixes move; when it
returns, so do they; every gateway process computes the same choice without asking the others. Prefix and URL are hashed
once (`number_of`), the URL when its endpoint is made. A weight is then one multiplication (Fibonacci hashing, Knuth,
"The Art of Computer Programming" 6.4) of two numbers that are random already, and costs 60 ns.

The load is bounded (`load_bound`): a prefix that all clients use must not overload one replica, so an endpoint with
more than LOAD_FACTOR times the mean in flight is skipped for the next in the prefix's order (Mirrokni, Thorup and
Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018, with its c = 1.25).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

# About 16 blocks of vLLM's prefix cache, which are 16 tokens each.
PREFIX_BYTES: Final = 1024
# Tools and the like may stand before the prompt. If the prompt begins later than this, use the body's own beginning
# (vLLM puts tools before the messages, too). To search this many bytes takes 0.1 ms.
SEARCHED_BYTES: Final = 16 * 1024
LOAD_FACTOR: Final = 1.25

_BITS: Final = 60  # a number of CPython has 30 bits a digit, and with three digits takes half as long again
_MASK: Final = 2**_BITS - 1
_MULTIPLIER: Final = 0x9E3779B97F4A7C15 >> 64 - _BITS | 1  # the golden ratio; odd, so that no two numbers collide

# A quote inside a JSON text is escaped, so these are keys and never text.
_PROMPT: Final = re.compile(rb'"(?:messages|prompt|input)"[ \t\r\n]*:[ \t\r\n]*')
_FROM_USER: Final = re.compile(rb'"role"[ \t\r\n]*:[ \t\r\n]*"user"')
# A bracket, or a text, which the end of the window may cut off.
_TOKEN: Final = re.compile(rb'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)')


def prompt_prefix(body: bytes) -> bytes:
    """The part of a request body (a JSON object that `peek` accepted) that decides on its replica."""
    found = _PROMPT.search(body, 0, SEARCHED_BYTES)
    if found is None:
        return body[:PREFIX_BYTES]
    start = found.end()
    window = body[start : start + PREFIX_BYTES]
    return window[: _end_of_first_user_message(window)]


def _end_of_first_user_message(window: bytes) -> int:
    """Where in `window`, which begins with a JSON value, that message ends; else where the value or the window does."""
    depth = message = 0
    for token in _TOKEN.finditer(window):
        mark = window[token.start()]
        if mark in b"[{":
            depth += 1
            if depth == 2:
                message = token.start()
        elif mark in b"]}":
            depth -= 1
            if depth == 1 and _FROM_USER.search(window, message, token.end()):
                return token.end()
        if depth == 0:
            return token.end()
    return len(window)


def number_of(text: bytes) -> int:
    """The number of a prefix or of a URL. It is the same in every process."""
    return int.from_bytes(blake2b(text, digest_size=8).digest()) & _MASK


def weights(prefix: int, endpoints: Iterable[int]) -> list[int]:
    """The weight of each endpoint for a prefix, all given by their numbers. The heaviest comes first."""
    return [(prefix ^ endpoint) * _MULTIPLIER & _MASK for endpoint in endpoints]


def load_bound(loads: Sequence[int]) -> float:
    """The most that an endpoint may have in flight and still be asked; `loads` are those of all that are up.

    The added 1 lets a few requests stay where their prefix is on an idle fleet.
    """
    return LOAD_FACTOR * sum(loads) / len(loads) + 1
