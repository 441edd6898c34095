"""Keys as text: a made key is parsed, and text that is not a key is recognised without hashing."""

import random
import secrets

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aiaas.keys.format import (
    ALPHABET,
    ID_LENGTH,
    SECRET_LENGTH,
    foreign_key_fault,
    guessable,
    make_key,
    make_key_id,
    parse_key,
    tag_of,
)

seeds = st.integers(min_value=0, max_value=2**64)
prefixes = st.text("abcXYZ019_-", max_size=16)


def key_from(seed: int, prefix: str = "sk-") -> str:
    return make_key(prefix, random.Random(seed).randbytes).text


@given(seeds, prefixes)
def test_made_key_is_parsed(seed: int, prefix: str) -> None:
    """A made key carries its id, whatever its prefix, and is letters and digits after it."""
    key = make_key(prefix, random.Random(seed).randbytes)
    parsed = parse_key(key.text)
    assert parsed is not None
    assert parsed.key_id == key.key_id
    assert len(parsed.key_id) == ID_LENGTH
    assert len(parsed.secret) == SECRET_LENGTH
    assert key.text.startswith(prefix)
    assert set(key.text.removeprefix(prefix)) <= set(ALPHABET)


def test_a_secret_has_128_bits_beyond_its_tag() -> None:
    """The secret's alphabet and length leave 128 bits to someone who knows the 16 bits of the tag."""
    assert 62**SECRET_LENGTH >> 16 > 2**128


def test_a_key_uses_the_randomness_that_it_is_given() -> None:
    """Two draws differ, one seed gives one key, and a given id stays."""
    assert key_from(1) != key_from(2)
    assert key_from(1) == key_from(1)
    assert make_key("sk-", secrets.token_bytes, "abcdefgh").key_id == "abcdefgh"


@given(seeds, st.integers(min_value=0, max_value=41), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_always_caught(seed: int, place: int, character: str) -> None:
    """No single changed character, in the prefix, the body or the checksum, leaves a valid key."""
    key = key_from(seed)
    assume(key[place] != character)
    assert parse_key(key[:place] + character + key[place + 1 :]) is None


@given(seeds, st.integers(min_value=0, max_value=40))
def test_two_swapped_neighbours_are_caught(seed: int, place: int) -> None:
    """Neighbours swapped anywhere leave no valid key (inside the covered part always, at its end but for 2^-32)."""
    key = key_from(seed)
    assume(key[place] != key[place + 1])
    assert parse_key(key[:place] + key[place + 1] + key[place] + key[place + 2 :]) is None


@given(seeds, st.integers(min_value=1, max_value=41))
def test_a_cut_key_is_caught(seed: int, length: int) -> None:
    """A key that lost its end or its beginning is not a key."""
    key = key_from(seed)
    assert parse_key(key[:length]) is None
    assert parse_key(key[-min(length, 38) :]) is None


@given(st.text(max_size=100))
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    """Junk of any kind, letters beyond ASCII too, is None."""
    assert parse_key(text) is None


@pytest.mark.parametrize("prefix", ["sk ", "schlüssel-", "x" * 33, "a\n"], ids=["space", "umlaut", "long", "newline"])
def test_a_prefix_that_no_header_carries_is_refused(prefix: str) -> None:
    """A prefix is visible ASCII and short."""
    with pytest.raises(ValueError, match="prefix"):
        make_key(prefix, secrets.token_bytes)


def test_a_malformed_id_is_refused() -> None:
    """A key is not made with an id that could not be parsed again."""
    with pytest.raises(ValueError, match="key id"):
        make_key("sk-", secrets.token_bytes, "short")


def test_no_repr_shows_a_key_or_a_secret() -> None:
    """A new key and a parsed one can be printed by accident without harm."""
    key = make_key("sk-", secrets.token_bytes)
    parsed = parse_key(key.text)
    assert parsed is not None
    assert parsed.secret not in repr(parsed) + repr(key)


def test_a_weak_tag_is_the_beginning_of_the_full_one() -> None:
    """One SHA-256 serves both lengths."""
    assert tag_of("sk-test-key", weak=True) == tag_of("sk-test-key")[:2]
    assert tag_of("a") != tag_of("b")


@pytest.mark.parametrize(
    "key",
    [
        "sk-test-key",
        "correct-horse-battery-staple",
        "1" * 40,
        "sk-Aa1Aa1Aa1Aa1Aa1Aa1Aa1Aa1",
        "sk-prod-MyPassword1234567890",
        "",
    ],
    ids=["the plan's", "words", "digits", "repetitive", "a word inside", "empty"],
)
def test_text_that_a_person_chose_is_guessable(key: str) -> None:
    """Short, repetitive and worded keys need --weak."""
    assert guessable(key)


@given(seeds)
def test_random_keys_are_not_guessable(seed: int) -> None:
    """32 random letters and digits pass (but for a short word that turns up once in 10,000)."""
    source = random.Random(seed)
    made = "".join(source.choices(ALPHABET, k=32))
    assume(not any(word in made.lower() for word in ("test", "demo", "local", "admin")))
    assert guessable("sk-" + made) is None


@pytest.mark.parametrize(
    "key", ["", "a b", "a\tb", "ü", "x" * 513, "a\x00"], ids=["empty", "space", "tab", "umlaut", "long", "nul"]
)
def test_text_unfit_for_a_header_is_not_a_foreign_key(key: str) -> None:
    """A foreign key is visible ASCII of up to 512 characters."""
    assert foreign_key_fault(key)


def test_an_id_is_eight_letters_and_digits() -> None:
    """Made-up ids for imported keys look like the others."""
    assert len(make_key_id(secrets.token_bytes)) == 8
