"""The users of one key: people whom the application behind it names in a header (`users_header` of the key). Pure.

A user is known by the hash of that name alone, salted with the key's id: who reads it can check a guess for one key,
and cannot tell that two keys have a user in common.
"""

from __future__ import annotations

import re
from dataclasses import fields
from hashlib import blake2b
from typing import Final

from aiaas.keys.model import NO_LIMITS, KeyLimits

LONGEST_USER: Final = 256  # bytes of the header's value that count
NO_USER: Final = "-"  # the user of all requests that name none

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,80}")
# Headers of the request itself. Some of them go upstream, where the user must not.
_NO_USERS: Final = frozenset(
    {
        *("accept", "anthropic-beta", "anthropic-version", "authorization", "content-length", "content-type"),
        *("host", "traceparent", "tracestate", "x-api-key", "x-request-id"),
    }
)
_SALT_SIZE: Final = 16  # bytes, BLAKE2b's


def user_of(key_id: str, value: str | None) -> str:
    """The user that the header's value names: 16 hex digits, or NO_USER where there is none."""
    if not value:
        return NO_USER
    name = value.encode("utf-8", "surrogateescape")[:LONGEST_USER]
    return blake2b(name, digest_size=8, salt=key_id.encode()[:_SALT_SIZE]).hexdigest()


def users_header_fault(name: str) -> str | None:
    """Why a header cannot name the users of a key; None if it can."""
    if not _HEADER.fullmatch(name):
        return "is not the name of a header; for Open WebUI write X-OpenWebUI-User-Id"
    if name.lower() in _NO_USERS:
        return "does not name a user"
    return None


def user_limits_fault(users_header: str | None, key: KeyLimits, user: KeyLimits) -> str | None:
    """Why a key cannot limit its users so; None if it can."""
    if user == NO_LIMITS:
        return None
    if users_header is None:
        return "limits on users need users_header, the header that names them"
    if user.burst is not None and user.requests_per_minute is None:
        return "burst needs requests_per_minute beside it"
    for field in fields(KeyLimits):
        name, whole, own = field.name, getattr(key, field.name), getattr(user, field.name)
        if whole is not None and own is not None and own > whole:
            return f"{name} of a user is {own}, above the key's own {whole}; lower it"
    return None
