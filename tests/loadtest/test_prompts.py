"""The generated requests: lengths, prefixes, files, bodies."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.errors import CheckFailed, UsageError
from aiaas.loadtest.prompts import Asking, Prompt, check_asking, next_body, parse_length, parse_prompts


def body(asking: Asking, number: int = 0, seed: int = 0) -> dict[str, Any]:
    """The body of a request, read back."""
    read: dict[str, Any] = json.loads(next_body(asking, "m", number, number, *[random.Random(seed).random] * 2))
    return read


def text(asking: Asking, number: int = 0) -> str:
    """The prompt of a request."""
    found: str = body(asking, number, number)["messages"][0]["content"]
    return found


@given(low=st.integers(1, 300), more=st.integers(0, 100), number=st.integers(0, 10**6))
def test_made_prompts_have_the_length_that_was_asked_for(low: int, more: int, number: int) -> None:
    """In words, drawn between the two ends."""
    assert low <= len(text(Asking(prompt_tokens=(low, low + more)), number).split()) <= low + more


def test_no_prompt_begins_like_another() -> None:
    """Otherwise the engine's prefix cache would be measured."""
    assert len({text(Asking(prompt_tokens=(20, 20)), number).split()[0] for number in range(100)}) == 100


def test_shared_prefix_is_equal_in_all_and_part_of_the_length() -> None:
    """And the rest differs in each."""
    found = [text(Asking(prompt_tokens=(50, 50), shared_prefix=30), number).split() for number in range(20)]
    assert len({tuple(words[:30]) for words in found}) == 1
    assert len({words[30] for words in found}) == 20
    assert {len(words) for words in found} == {50}


def test_the_same_seed_asks_the_same() -> None:
    """A run can be repeated."""
    asking = Asking(prompt_tokens=(5, 50), output_tokens=(1, 90))
    assert body(asking, 3, 9) == body(asking, 3, 9)
    assert body(asking, 3, 9) != body(asking, 3, 10)


def test_stream_asks_for_usage_and_an_exact_answer_length() -> None:
    """So that the server counts tokens, and answers can be compared."""
    assert (
        body(Asking(output_tokens=(7, 7))).items()
        >= {
            "model": "m",
            "max_tokens": 7,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }.items()
    )
    assert "stream" not in body(Asking(stream=False))


def test_completions_ask_by_prompt() -> None:
    """And not by messages."""
    asked = body(Asking(endpoint="completions", prompts=(Prompt("hello"),)))
    assert asked["prompt"] == "hello"
    assert "messages" not in asked


def test_a_file_of_json_lines_gives_prompts_and_messages_in_turn() -> None:
    """A prompt's own max_tokens wins, and then it may end by itself."""
    prompts = parse_prompts(
        "p", [b'{"prompt":"one","max_tokens":3}', b"", b'"two"', b'{"messages":[{"role":"user","content":"three"}]}']
    )
    asked = [body(Asking(prompts=prompts), number) for number in range(4)]
    assert [each["messages"][0]["content"] for each in asked] == ["one", "two", "three", "one"]
    assert (asked[0]["max_tokens"], "ignore_eos" in asked[0]) == (3, False)
    assert (asked[1]["max_tokens"], "ignore_eos" in asked[1]) == (100, True)


def test_a_file_of_text_gives_a_prompt_a_line() -> None:
    """Empty lines are skipped."""
    assert parse_prompts("p", [b"one two\n", b"\n", b" three\n"]) == (Prompt("one two"), Prompt("three"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([b"", b" "], "p: does not contain a prompt", id="empty"),
        pytest.param([b'{"prompt":"a"}', b"", b'{"prompt":'], "p:3: Input data was truncated", id="cut"),
        pytest.param([b'{"prompt":"a"}', b"plain"], "p:2: ", id="text among JSON"),
        pytest.param([b'{"text":"a"}'], "p:1: Object contains unknown field `text`", id="unknown field"),
        pytest.param([b"{}"], "p:1: needs either prompt or messages", id="neither"),
        pytest.param([b'{"prompt":"a","max_tokens":0}'], "p:1: max_tokens must be 1 or more", id="no tokens"),
        pytest.param([b"a", b"\xff"], "p:2: is not UTF-8", id="not UTF-8"),
    ],
)
def test_a_broken_line_is_named(lines: list[bytes], message: str) -> None:
    """The error has file and line."""
    with pytest.raises(CheckFailed) as refused:
        parse_prompts("p", lines)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("written", [("100", (100, 100)), ("50-200", (50, 200))], ids=["one", "two"])
def test_a_length_is_one_number_or_two(written: tuple[str, tuple[int, int]]) -> None:
    """Shortest and longest."""
    assert parse_length("--x", written[0]) == written[1]


@pytest.mark.parametrize("written", ["", "a", "0", "9-3", "3-", "-3", "1.5", "99999999", "²"])
def test_a_wrong_length_is_refused_by_the_options_name(written: str) -> None:
    """One line."""
    with pytest.raises(UsageError, match="--x: "):
        parse_length("--x", written)


@pytest.mark.parametrize(
    ("asking", "message"),
    [
        (Asking(endpoint="completions", prompts=parse_prompts("p", [b'{"messages":[]}'])), "need --endpoint chat"),
        (Asking(prompt_tokens=(10, 20), shared_prefix=10), "must be shorter"),
    ],
    ids=["messages to completions", "a prefix that is all"],
)
def test_contradicting_options_are_refused(asking: Asking, message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError, match=message):
        check_asking(asking)


def test_a_pair_has_the_same_lengths_and_other_words() -> None:
    """One half goes past the gateway: a longer answer there was once taken for the gateway's own time."""
    asking = Asking(prompt_tokens=(10, 200), output_tokens=(20, 400))
    for turn in range(20):
        halves = [
            json.loads(next_body(asking, "m", number, turn, random.Random(number).random, random.Random(turn).random))
            for number in (2 * turn, 2 * turn + 1)
        ]
        texts = [half["messages"][0]["content"] for half in halves]
        assert halves[0]["max_tokens"] == halves[1]["max_tokens"]
        assert len(texts[0].split()) == len(texts[1].split())
        assert texts[0] != texts[1]
