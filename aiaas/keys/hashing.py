"""How a key is stored: passlib's CryptContext with argon2id, parameters stated here and nowhere else.

Argon2id with m=19 MiB, t=2, p=1 is the second of OWASP's equivalent settings (Password Storage Cheat Sheet).
argon2-cffi's own default (RFC 9106's low-memory profile: 64 MiB, four lanes) is not used: two verifications at once
would take 128 of the 512 MiB that the pod has. `pbkdf2_sha256` is accepted, for records made elsewhere.

One verification takes about 20 ms of one core and lets go of the GIL, so it belongs into a thread.
"""

from __future__ import annotations

import re
from typing import Any, Final, cast

from passlib.context import CryptContext

ARGON2_MEMORY: Final = 19_456  # KiB
ARGON2_PASSES: Final = 2
ARGON2_LANES: Final = 1
PBKDF2_ROUNDS: Final = 600_000  # OWASP's figure for SHA-256

MAX_ARGON2_MEMORY: Final = 262_144  # KiB; a record that asks for more could kill the pod at the first request
MAX_ARGON2_WORK: Final = 4 * MAX_ARGON2_MEMORY  # KiB times passes; about a second
MAX_PBKDF2_ROUNDS: Final = 10_000_000

_ARGON2: Final = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,4}),p=(\d{1,2})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}"
)
_PBKDF2: Final = re.compile(r"\$pbkdf2-sha256\$(\d{1,8})\$[A-Za-z0-9./]{1,1368}\$[A-Za-z0-9./]{43}")

_CONTEXT: Final[Any] = cast(Any, CryptContext)(  # passlib has no types
    schemes=["argon2", "pbkdf2_sha256"],
    deprecated=["pbkdf2_sha256"],
    argon2__type="ID",
    argon2__memory_cost=ARGON2_MEMORY,
    argon2__time_cost=ARGON2_PASSES,
    argon2__parallelism=ARGON2_LANES,
    pbkdf2_sha256__rounds=PBKDF2_ROUNDS,
)


def hash_key(key: str) -> str:
    """The argon2id hash to store for a key, with a fresh salt. About 20 ms."""
    hashed: str = _CONTEXT.hash(key)
    return hashed


def verify_key(key: str, stored: str) -> bool:
    """Whether `stored` is the hash of `key`; the comparison takes constant time. A malformed hash matches nothing."""
    if hash_fault(stored) is not None:
        return False
    try:
        return bool(_CONTEXT.verify(key, stored))
    except ValueError:  # well-formed for our patterns, not for passlib (such as padding bits that are not zero)
        return False


def needs_update(stored: str) -> bool:
    """Whether a key that matches `stored` should be hashed anew: another scheme, or other parameters than ours."""
    return bool(_CONTEXT.needs_update(stored))


def hash_fault(stored: str) -> str | None:
    """Why `stored` cannot be used as a hash, or None. Does no hashing; costs about two microseconds."""
    if match := _ARGON2.fullmatch(stored):
        memory, passes, lanes = map(int, match.groups())
        if not (lanes >= 1 and passes >= 1 and memory >= 8 * lanes):
            return "its argon2id parameters are impossible"
        if memory > MAX_ARGON2_MEMORY or memory * passes > MAX_ARGON2_WORK:
            return (
                f"it asks for more work than the gateway can bear; up to m={MAX_ARGON2_MEMORY} (KiB), t=4 is accepted"
            )
        return None
    if match := _PBKDF2.fullmatch(stored):
        if not 1 <= int(match[1]) <= MAX_PBKDF2_ROUNDS:
            return f"its rounds must be 1 to {MAX_PBKDF2_ROUNDS}"
        return None
    return "not a whole argon2id or pbkdf2_sha256 hash as passlib writes it"
