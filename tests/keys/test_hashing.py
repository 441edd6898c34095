"""Stored hashes and digests: which key gets which, with which parameters, and what else is accepted or refused."""

import math
import secrets
import time

import pytest
from passlib.hash import argon2, ldap_salted_sha256, pbkdf2_sha256

from aiaas.keys.format import ALPHABET, SECRET_LENGTH, make_key
from aiaas.keys.hashing import digest_key, hash_fault, hash_key, is_digest, needs_update, verify_key

KEY = "sk-some-key"
HASHED = hash_key(KEY)
OWN = make_key("sk-", secrets.token_bytes).text
DIGEST = digest_key(OWN)


def test_a_hash_is_argon2id_with_the_stated_parameters() -> None:
    """m=19 MiB, t=2, p=1 stand in the hash, and never the library's default."""
    assert HASHED.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert hash_fault(HASHED) is None
    assert not is_digest(HASHED)
    assert not needs_update(HASHED, imported=True)


def test_a_hash_matches_its_key_and_no_other() -> None:
    """Verification tells the key from a near one, and salts differ."""
    assert verify_key(KEY, HASHED)
    assert not verify_key(KEY + "x", HASHED)
    assert hash_key(KEY) != HASHED


def test_generated_secret_is_beyond_guessing() -> None:
    """The arithmetic of docs/keys.md: at 10^21 digests a second, half of all secrets take 10^16 years."""
    assert math.log2(len(ALPHABET) ** SECRET_LENGTH) > 148
    years = len(ALPHABET) ** SECRET_LENGTH / 2 / 1e21 / (365.25 * 24 * 3600)
    assert 1e16 < years < 1.1e16


def test_a_digest_matches_its_key_and_no_other() -> None:
    """A salt of 16 bytes for each: the same key twice gives two digests."""
    assert verify_key(OWN, DIGEST)
    assert not verify_key(make_key("sk-", secrets.token_bytes).text, DIGEST)
    assert digest_key(OWN) != DIGEST
    assert hash_fault(DIGEST) is None
    assert not needs_update(DIGEST, imported=False)
    assert len(ldap_salted_sha256.from_string(DIGEST).salt) == 16


@pytest.mark.parametrize(
    "text", [KEY, "", OWN[:-1], OWN + "x", OWN[:-1] + ("a" if OWN[-1] != "a" else "b")],
    ids=["a foreign key", "nothing", "cut", "longer", "a wrong checksum"],
)  # fmt: skip
def test_a_digest_is_only_for_a_key_in_our_own_form(text: str) -> None:
    """Another text may be guessable, so its digest is neither made nor accepted."""
    with pytest.raises(ValueError, match="only a key that aiaas made"):
        digest_key(text)
    assert not verify_key(text, ldap_salted_sha256.using(salt_size=16).hash(text))


def test_a_digest_costs_a_thousandth_of_a_hash() -> None:
    """So a digest is compared in the event loop. It takes a three-thousandth of a hash."""

    def quickest(key: str, stored: str, times: int) -> float:
        took = []
        for _ in range(times):
            began = time.thread_time()
            assert verify_key(key, stored)
            took.append(time.thread_time() - began)
        return min(took)

    assert quickest(OWN, DIGEST, 200) * 300 < quickest(KEY, HASHED, 3)


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
    assert needs_update(stored, imported=True)


def test_generated_key_wants_a_digest() -> None:
    """A generated key that is stored with a slow hash, as one from elsewhere, is renewed by `keys verify`."""
    assert needs_update(HASHED, imported=False)


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
        DIGEST[:-1],
        DIGEST + "\n",
        DIGEST.replace("{SSHA256}", "{SSHA}"),
        ldap_salted_sha256.using(salt_size=4).hash(OWN),
    ],
    ids=[
        "empty", "word", "cut", "cut early", "bcrypt", "4 GiB", "slow", "impossible", "no pass", "endless", "newline",
        "a cut digest", "a digest and a newline", "SHA-1", "a short salt",
    ],
)  # fmt: skip
def test_an_unusable_hash_is_told_and_matches_nothing(stored: str) -> None:
    """A malformed hash, or one that would kill the pod, is refused without hashing."""
    assert hash_fault(stored)
    assert not verify_key(KEY, stored)
    assert not verify_key(OWN, stored)


def test_a_hash_that_only_passlib_refuses_matches_nothing() -> None:
    """Well-formed for the pattern, with impossible padding: False and no exception."""
    broken = HASHED[:-1] + "/"
    assert not verify_key(KEY, broken)
