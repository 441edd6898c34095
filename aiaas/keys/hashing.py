"""How a key is stored: two of passlib's schemes, each for the keys that it is safe for.

    a key that aiaas made    ldap_salted_sha256   {SSHA256}...    4 us, in the event loop
    an imported key          argon2id             $argon2id$...   20 ms, in a thread

A slow hash makes guessing expensive, which a password needs. A key that aiaas made has 148 random bits: at 10^21
SHA-256 a second, the rate of all Bitcoin miners together, trying half of all secrets takes 10^16 years. A hash that is
a thousand times slower adds nothing to that, and costs each process 20 ms for each key after every start. An imported
key may be a guessable word, so it is always stored with argon2id.

A digest therefore matches only a text in the form of aiaas's own keys (`parse_key`). The form alone is not enough for
`import`: anybody can compute a checksum.

Argon2id with m=19 MiB, t=2, p=1 is the second of OWASP's equivalent settings (Password Storage Cheat Sheet).
argon2-cffi's own default (RFC 9106's low-memory profile: 64 MiB, four lanes) is not used: two verifications at once
would take 128 of the 512 MiB that the pod has. `pbkdf2_sha256` is accepted, for records made elsewhere.
"""

from __future__ import annotations

import re
from typing import Any, Final, cast

from passlib.context import CryptContext

from aiaas.keys.format import parse_key

ARGON2_MEMORY: Final = 19_456  # KiB
ARGON2_PASSES: Final = 2
ARGON2_LANES: Final = 1
PBKDF2_ROUNDS: Final = 600_000  # OWASP's figure for SHA-256
DIGEST_SALT: Final = 16  # bytes; with a salt of its own for each key, one guess serves against one key only

MAX_ARGON2_MEMORY: Final = 262_144  # KiB; a record that asks for more could kill the pod at the first request
MAX_ARGON2_WORK: Final = 4 * MAX_ARGON2_MEMORY  # KiB times passes; about a second
MAX_PBKDF2_ROUNDS: Final = 10_000_000

_ARGON2: Final = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,4}),p=(\d{1,2})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
)
_PBKDF2: Final = re.compile(r"\$pbkdf2-sha256\$(\d{1,8})\$[A-Za-z0-9./]{1,1368}\$[A-Za-z0-9./]{43}")
_DIGEST: Final = re.compile(r"\{SSHA256\}[A-Za-z0-9+/]{64}")  # 32 bytes of SHA-256 and DIGEST_SALT of salt

_FAST: Final[Any] = cast(Any, CryptContext)(  # passlib has no types
    schemes=["ldap_salted_sha256"], ldap_salted_sha256__salt_size=DIGEST_SALT
)
_SLOW: Final[Any] = cast(Any, CryptContext)(
    schemes=["argon2", "pbkdf2_sha256"],
    deprecated=["pbkdf2_sha256"],
    argon2__type="ID",
    argon2__memory_cost=ARGON2_MEMORY,
    argon2__time_cost=ARGON2_PASSES,
    argon2__parallelism=ARGON2_LANES,
    pbkdf2_sha256__rounds=PBKDF2_ROUNDS,
)


def hash_key(key: str) -> str:
    """The argon2id hash to store for an imported key, with a fresh salt. About 20 ms."""
    hashed: str = _SLOW.hash(key)
    return hashed


def digest_key(key: str) -> str:
    """The digest to store for a key that aiaas has just made, with a fresh salt. ValueError for any other text."""
    if parse_key(key) is None:
        raise ValueError("only a key that aiaas made can be stored as a digest")
    digest: str = _FAST.hash(key)
    return digest


def is_digest(stored: str) -> bool:
    """Whether `stored` is a digest, which takes microseconds to compare, and not a slow hash."""
    return stored.startswith("{")


def verify_key(key: str, stored: str) -> bool:
    """Whether `stored` is the hash or digest of `key`; the comparison takes constant time.

    A malformed hash matches nothing, and a digest matches only a key in aiaas's own form.
    """
    if hash_fault(stored) is not None:
        return False
    if is_digest(stored):
        return parse_key(key) is not None and bool(_FAST.verify(key, stored))
    try:
        return bool(_SLOW.verify(key, stored))
    except ValueError:  # well-formed for our patterns, not for passlib (such as padding bits that are not zero)
        return False


def needs_update(stored: str, *, imported: bool) -> bool:
    """Whether to hash a key that matches `stored` again: it has another scheme, or parameters other than ours."""
    return bool(_SLOW.needs_update(stored)) if imported else not is_digest(stored)


def hash_fault(stored: str) -> str | None:
    """Why `stored` cannot be used as a hash, or None. Does no hashing; costs about two microseconds."""
    if _DIGEST.fullmatch(stored):
        return None
    if match := _ARGON2.fullmatch(stored):
        memory, passes, lanes = map(int, match.groups())
        if not (lanes >= 1 and passes >= 1 and memory >= 8 * lanes):
            return "its argon2id parameters are impossible"
        if memory > MAX_ARGON2_MEMORY or memory * passes > MAX_ARGON2_WORK:
            return (
                f"it needs too much memory or time for the gateway; up to m={MAX_ARGON2_MEMORY} (KiB), t=4 is accepted"
            )
        return None
    if match := _PBKDF2.fullmatch(stored):
        if not 1 <= int(match[1]) <= MAX_PBKDF2_ROUNDS:
            return f"its rounds must be 1 to {MAX_PBKDF2_ROUNDS}"
        return None
    return "not a whole {SSHA256}, argon2id or pbkdf2_sha256 hash as passlib writes it"
