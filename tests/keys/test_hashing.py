"""Stored hashes: stated parameters, other schemes accepted, malformed ones refused."""

import pytest
from passlib.hash import argon2, pbkdf2_sha256

from aiaas.keys.hashing import hash_fault, hash_key, needs_update, verify_key

KEY = "sk-some-key"
HASHED = hash_key(KEY)


def test_a_hash_is_argon2id_with_the_stated_parameters() -> None:
    """m=19 MiB, t=2, p=1 stand in the hash, and never the library's default."""
    assert HASHED.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert hash_fault(HASHED) is None
    assert not needs_update(HASHED)


def test_a_hash_matches_its_key_and_no_other() -> None:
    """Verification tells the key from a near one, and salts differ."""
    assert verify_key(KEY, HASHED)
    assert not verify_key(KEY + "x", HASHED)
    assert hash_key(KEY) != HASHED


@pytest.mark.parametrize(
    "stored",
    [
        pbkdf2_sha256.using(rounds=1000).hash(KEY),
        argon2.using(type="ID", memory_cost=8192, time_cost=1, parallelism=1).hash(KEY),
        argon2.using(type="ID", memory_cost=65536, time_cost=1, parallelism=4).hash(KEY),
    ],
    ids=["pbkdf2", "weaker argon2id", "the library's default"],
)
def test_other_hashes_match_and_want_an_update(stored: str) -> None:
    """pbkdf2_sha256 and argon2id with other parameters are accepted, and renewed by `keys verify`."""
    assert verify_key(KEY, stored)
    assert not verify_key("other", stored)
    assert needs_update(stored)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain",
        HASHED[:-30],
        HASHED[:20],
        "$2b$12$abcdefghijklmnopqrstuuu",
        HASHED.replace("m=19456", "m=4194304"),
        HASHED.replace("t=2", "t=9999"),
        HASHED.replace("m=19456", "m=1"),
        HASHED.replace("t=2", "t=0"),
        "$pbkdf2-sha256$99999999$" + "a" * 22 + "$" + "a" * 43,
        HASHED + "\n",
    ],
    ids=["empty", "word", "cut", "cut early", "bcrypt", "4 GiB", "slow", "impossible", "no pass", "endless", "newline"],
)
def test_an_unusable_hash_is_told_and_matches_nothing(stored: str) -> None:
    """A malformed hash, or one that would kill the pod, is refused without hashing."""
    assert hash_fault(stored)
    assert not verify_key(KEY, stored)


def test_a_hash_that_only_passlib_refuses_matches_nothing() -> None:
    """Well-formed for the pattern, with impossible padding: False and no exception."""
    broken = HASHED[:-1] + "/"
    assert not verify_key(KEY, broken)
