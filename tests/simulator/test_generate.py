"""The generated text, and its times."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.simulator.generate import (
    NOTICE,
    NOTICE_EVERY,
    NOTICE_TOKENS,
    WORD_TOKENS,
    Ask,
    count_tokens,
    make_choice,
    make_pace,
    seed_of,
    tokenize,
)

ROOM = 100_000


def ask(max_tokens: int | None = None, **more: object) -> Ask:
    return Ask(max_tokens, **{"context_left": ROOM, **more})  # type: ignore[arg-type]


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    """Nothing is lost between tokens."""
    assert "".join(tokenize(text)) == text
    assert count_tokens(text) == len(tokenize(text))


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("word", 1), ("two words", 2), ("  led", 1), ("trailing ", 2), ("x" * 16, 1), ("x" * 17, 2), ("\n\n", 1)],
    ids=["nothing", "a word", "two words", "leading space", "trailing space", "16 letters", "17 letters", "space only"],
)
def test_the_token_rule_is_the_documented_one(text: str, count: int) -> None:
    """Whitespace and up to 16 characters of the word after it are one token."""
    assert count_tokens(text) == count


@given(st.integers(0, 2**64 - 1), st.integers(1, 300))
def test_a_generated_text_counts_as_its_tokens(seed: int, max_tokens: int) -> None:
    """Each generated token is one token by the rule that counts prompts."""
    choice = make_choice(ask(max_tokens, ignore_eos=True), seed, 64)
    assert len(choice.deltas) == max_tokens
    assert tokenize(choice.text) == list(choice.deltas)


def test_every_answer_says_what_it_is() -> None:
    """The notice opens the answer and comes back every 64 tokens."""
    text = make_choice(ask(3 * NOTICE_EVERY, ignore_eos=True), 1, 64).text
    assert text.startswith(NOTICE)
    assert text.count(NOTICE) == 3


def test_answer_is_the_same_for_the_same_seed_only() -> None:
    """Words depend on the seed alone, on any machine: the literals were made once."""
    one, again, other = (make_choice(ask(11, ignore_eos=True), seed, 64).text for seed in (7, 7, 8))
    assert one == again != other
    assert one == NOTICE + " willow island and"
    assert seed_of("a", 1) == 11132678856793633452


@given(st.integers(0, 2**64 - 1), st.integers(1, 100))
def test_answer_ends_between_half_and_all_of_its_natural_length(seed: int, answer_tokens: int) -> None:
    """Without max_tokens the last token is the end, which has no text."""
    choice = make_choice(ask(), seed, answer_tokens)
    assert (answer_tokens + 1) // 2 <= len(choice.deltas) <= answer_tokens
    assert (choice.finish_reason, choice.deltas[-1]) == ("stop", "")


def test_max_tokens_below_the_natural_length_cuts() -> None:
    """finish_reason is length, and no end token comes."""
    choice = make_choice(ask(5), 1, 64)
    assert (len(choice.deltas), choice.finish_reason) == (5, "length")
    assert "" not in choice.deltas


def test_the_context_cuts_like_max_tokens() -> None:
    """An answer never outgrows the context."""
    choice = make_choice(ask(50, context_left=3, ignore_eos=True), 1, 64)
    assert (len(choice.deltas), choice.finish_reason) == (3, "length")


def test_min_tokens_puts_off_the_end() -> None:
    """At least min_tokens tokens have text."""
    choice = make_choice(ask(min_tokens=40, eos_first=True), 1, 4)
    assert len(choice.deltas) == 41
    assert choice.finish_reason == "stop"


def test_an_end_at_once_is_one_token_without_text() -> None:
    """`logit_bias` for the end token."""
    assert make_choice(ask(9, eos_first=True), 1, 64).deltas == ("",)


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.sampled_from(["e", " a", "or. a", " not a model", "zzz", "is the"]), min_size=1, max_size=3),
    st.booleans(),
)
def test_a_stop_string_never_shows_and_nothing_before_it_is_lost(seed: int, stops: list[str], included: bool) -> None:
    """The text is the unstopped one up to the earliest stop string, or up to its end with include_stop."""
    whole = make_choice(ask(60, ignore_eos=True), seed, 64).text
    choice = make_choice(ask(60, ignore_eos=True, stop=tuple(stops), include_stop=included), seed, 64)
    found = [(whole.index(stop), stop) for stop in stops if stop in whole]
    if not found:
        assert (choice.text, choice.finish_reason, choice.stop_reason) == (whole, "length", None)
        return
    assert choice.finish_reason == "stop"
    assert choice.stop_reason in stops
    at = whole.index(choice.stop_reason)
    assert choice.text == whole[: at + len(choice.stop_reason) if included else at]


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    """With a stop string of four characters a token's last three wait for the next token."""
    deltas = make_choice(ask(3, ignore_eos=True, stop=("zzzz",)), 1, 64).deltas
    assert deltas == ("T", "his", " is the")
    assert NOTICE_TOKENS[:3] == ("This", " is", " the")


def test_deadlines_are_absolute() -> None:
    """Token k is due at ttft + k x itl, whenever the one before came."""
    pace = make_pace(10, 0.05, 0.01, 0, 1)
    assert [round(pace.due(k), 6) for k in (0, 1, 9)] == [0.05, 0.06, 0.14]


@given(st.integers(0, 2**64 - 1), st.floats(0, 1))
def test_jitter_keeps_order_and_bounds(seed: int, jitter: float) -> None:
    """Every gap is within its share of the nominal one, so deadlines never go back."""
    pace = make_pace(50, 0.1, 0.01, jitter, seed)
    dues = [0.0, *(pace.due(k) for k in range(50))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(dues)]
    for gap, nominal in zip(gaps, [0.1] + [0.01] * 49, strict=True):
        assert nominal * (1 - jitter) - 1e-9 <= gap <= nominal * (1 + jitter) + 1e-9
    assert [make_pace(50, 0.1, 0.01, jitter, seed).due(k) for k in range(50)] == dues[1:]


def test_no_word_is_longer_than_a_token() -> None:
    """Otherwise a generated word would count as two."""
    assert all(count_tokens(word) == 1 for word in (*WORD_TOKENS, *(word + "." for word in WORD_TOKENS)))


CUTS = st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 150), st.floats(0, 1))


@given(CUTS)
def test_beginning_and_rest_are_the_uncut_answer(cut: tuple[int, int, float]) -> None:
    """Wherever it is cut, inside a token, too; the end is the same, and the tokens add up at a token's end."""
    seed, answer_tokens, share = cut
    whole = make_choice(ask(), seed, answer_tokens)
    beginning = whole.text[: int(len(whole.text) * share)]
    rest = make_choice(ask(opened=beginning), seed, answer_tokens)
    assert beginning + rest.text == whole.text
    assert (rest.finish_reason, rest.deltas[-1]) == ("stop", "")
    inside = tokenize(beginning) != list(whole.deltas[: count_tokens(beginning)])
    assert count_tokens(beginning) + len(rest.deltas) == len(whole.deltas) + inside


@given(CUTS)
def test_max_tokens_of_a_rest_count_the_rest_alone(cut: tuple[int, int, float]) -> None:
    """An answer of `length` tokens, cut after some of them, has the others left."""
    seed, length, share = cut
    whole = make_choice(ask(length, ignore_eos=True), seed, 64)
    said = int(length * share)
    rest = make_choice(ask(length - said, ignore_eos=True, opened="".join(whole.deltas[:said])), seed, 64)
    assert rest.deltas == whole.deltas[said:]


@given(CUTS, st.sampled_from([("is the",), (" a", "or. a"), ("model. w",)]))
def test_rest_ends_where_the_uncut_answer_met_its_stop_string(
    cut: tuple[int, int, float], stop: tuple[str, ...]
) -> None:
    """Its beginning is what a client has when the stream breaks after some tokens."""
    seed, answer_tokens, share = cut
    whole = make_choice(ask(stop=stop), seed, answer_tokens)
    beginning = "".join(whole.deltas[: int((len(whole.deltas) - 1) * share)])
    rest = make_choice(ask(stop=stop, opened=beginning), seed, answer_tokens)
    assert beginning + rest.text == whole.text
    assert rest.stop_reason == whole.stop_reason


def test_min_tokens_of_a_rest_put_off_its_own_end() -> None:
    """As many of them as the uncut answer had left."""
    whole = make_choice(ask(min_tokens=40), 1, 4)
    rest = make_choice(ask(min_tokens=30, opened="".join(whole.deltas[:10])), 1, 4)
    assert rest.deltas == whole.deltas[10:]


def test_a_beginning_of_its_own_counts_its_tokens() -> None:
    """Text that the simulator would not have said: as many tokens are left out."""
    whole = make_choice(ask(), 1, 64)
    assert make_choice(ask(opened="Once upon a time"), 1, 64).deltas == whole.deltas[4:]


def test_a_beginning_longer_than_the_answer_ends_at_once() -> None:
    """One token without text."""
    choice = make_choice(ask(opened="word " * 100), 1, 64)
    assert (choice.deltas, choice.finish_reason) == (("",), "stop")
