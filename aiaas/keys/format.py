"""How a key is written: prefix, key id, secret, checksum, all letters and digits after the prefix.

    sk-  4hT0bQ2x  Zp8...(25 characters)  01kWq9
    |    |         |                      CRC-32 of all before it, six base62 digits
    |    |         148 bits of randomness
    |    public: appears in logs, metrics and the key file
    whatever `auth.api_key_prefix` says

Rules:
  1. Fixed widths from the end, so that a key is parsed without knowing its prefix: changing `api_key_prefix` changes
  new keys and leaves existing keys alone.
  2. The checksum is neither secret nor proof. It tells a typo or junk from a key before anything is hashed. CRC-32 sees
     every single changed character and every swap of two neighbours in the part that it covers (bursts of up to 32
     bits, RFC 3385 section 4), and lets other junk through with a chance of 2^-32.
  3. Pure: randomness comes in as `randbytes`.
"""

from __future__ import annotations

import hashlib
import re
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH: Final = 8  # 47 bits: no collision in practice, short enough for a log line; the key file checks it
SECRET_LENGTH: Final = 25  # 62^25 > 2^148; `hashing.py` says why that many
CHECKSUM_LENGTH: Final = 6  # 62^6 > 2^32
BODY_LENGTH: Final = ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH
MAX_PREFIX_LENGTH: Final = 32
MAX_KEY_LENGTH: Final = 512  # of foreign keys; longer ones are refused unread

TAG_LENGTH: Final = 4  # hex digits, 16 bits: one wrong key in 65,536 reaches the slow hash
WEAK_TAG_LENGTH: Final = 2  # 8 bits: a guesser with the file should win little by the tag

_ID: Final = re.compile(f"[0-9A-Za-z]{{{ID_LENGTH}}}")
_BODY: Final = re.compile(f"[0-9A-Za-z]{{{BODY_LENGTH}}}")
_PREFIX: Final = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key. `text` is the key itself: print it once, store its hash."""

    key_id: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A text with the form of a key and a correct checksum. Only its hash tells whether it is valid."""

    key_id: str
    secret: str = field(repr=False)


def make_key(prefix: str, randbytes: Callable[[int], bytes], key_id: str | None = None) -> NewKey:
    """Make a key, with a random id unless one is given (a rotated key keeps its id).

    randbytes  n -> n random bytes, such as `secrets.token_bytes`
    Raises ValueError for a prefix that a header cannot carry, and for a malformed id.
    """
    if len(prefix) > MAX_PREFIX_LENGTH or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"a key prefix is up to {MAX_PREFIX_LENGTH} visible ASCII characters")
    if key_id is None:
        key_id = make_key_id(randbytes)
    elif not is_key_id(key_id):
        raise ValueError(f"a key id is {ID_LENGTH} letters and digits")
    body = prefix + key_id + _digits(int.from_bytes(randbytes(32)), SECRET_LENGTH)
    return NewKey(key_id=key_id, text=body + _checksum(body))


def make_key_id(randbytes: Callable[[int], bytes]) -> str:
    """Make up a key id."""
    return _digits(int.from_bytes(randbytes(16)), ID_LENGTH)


def parse_key(text: str) -> ParsedKey | None:
    """Parse a key; None where aiaas did not make it. Takes about a microsecond for any text."""
    if not BODY_LENGTH <= len(text) <= MAX_PREFIX_LENGTH + BODY_LENGTH or not text.isascii():
        return None
    body, checksum = text[:-CHECKSUM_LENGTH], text[-CHECKSUM_LENGTH:]
    if not _BODY.fullmatch(text, len(text) - BODY_LENGTH) or _checksum(body) != checksum:
        return None
    return ParsedKey(key_id=body[-SECRET_LENGTH - ID_LENGTH : -SECRET_LENGTH], secret=body[-SECRET_LENGTH:])


def is_key_id(text: str) -> bool:
    """Whether `text` has the form of a key id."""
    return _ID.fullmatch(text) is not None


def tag_of(key: str, *, weak: bool = False) -> str:
    """The short lookup tag of an imported key: a few bits of its SHA-256, in hex.

    It spares the slow hash nearly every wrong key. It is short on purpose: a reader of the key file learns 16 bits of
    the key from it (8 bits of a guessable one), which is useless for guessing.
    """
    return hashlib.sha256(b"aiaas key tag\0" + key.encode()).hexdigest()[: WEAK_TAG_LENGTH if weak else TAG_LENGTH]


def foreign_key_fault(key: str) -> str | None:
    """Why a text cannot be an API key (it has to fit into an Authorization header), or None."""
    if not key:
        return "it is empty"
    if len(key) > MAX_KEY_LENGTH:
        return f"it is longer than {MAX_KEY_LENGTH} characters"
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        return "it holds a space, a control character or a non-ASCII letter, which an Authorization header cannot carry"
    return None


COMMON_WORDS: Final = (
    "12345", "abcde", "admin", "changeme", "default", "demo", "dummy", "example", "letmein", "local", "master",
    "openai", "passwor", "qwerty", "sample", "secret", "sk-key", "test", "xxxx",
)  # fmt: skip


def guessable(key: str) -> str | None:
    """Why a foreign key looks as if a person had made it up, or None where it looks random.

    A heuristic, on the strict side: at least 20 characters after its first word (`sk-`), two of lower case, upper case
    and digits, nine distinct characters, and no word that people put into keys. A random key of 24
    letters and digits or a UUID passes.
    """
    rest = re.sub(r"^[A-Za-z]{1,8}[-_]", "", key)
    if len(rest) < 20:
        return "it has fewer than 20 characters after its prefix"
    if sum(bool(re.search(kind, rest)) for kind in ("[a-z]", "[A-Z]", "[0-9]")) < 2:
        return "it has only lower case, only upper case, or only digits"
    if len(set(rest)) < 9:
        return "it repeats a few characters"
    word = next((word for word in COMMON_WORDS if word in rest.lower()), None)
    return None if word is None else "it holds a common word"


def _checksum(body: str) -> str:
    return _digits(zlib.crc32(body.encode("ascii")), CHECKSUM_LENGTH)


def _digits(number: int, count: int) -> str:
    """The lowest `count` base62 digits. From a number 100 bits longer than that they are as good as uniform."""
    digits = []
    for _ in range(count):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(digits)
