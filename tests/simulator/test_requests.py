"""From a body to a job. The refusals' texts are in tests/e2e/wire_refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.simulator.errors import WireError
from aiaas.simulator.forms import parse_json
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.requests import ApiFamily, GenerationJob, parse_invocation, parse_job, pieces_to_tokenize

OPTIONS = SimulatorOptions(max_model_len=100)
HELLO = [{"role": "user", "content": "Say hello."}]
FAMILIES: tuple[ApiFamily, ...] = ("chat", "completions", "responses", "messages")


def job(family: ApiFamily = "chat", options: SimulatorOptions = OPTIONS, **body: Any) -> GenerationJob:
    if family == "chat":
        body.setdefault("messages", HELLO)
    return parse_job(family, body, options)


def test_conversation_tokens_follow_the_documented_rule() -> None:
    """Two words, 4 for the message, 3 for the opening; parts of text count as their lines."""
    assert job().prompt_tokens == 2 + 4 + 3
    parts = [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]
    assert job(messages=[{"role": "user", "content": parts}, *HELLO]).prompt_tokens == 3 + 4 + 2 + 4 + 3


def test_the_answer_depends_on_prompt_and_seeds_only() -> None:
    """Not on whether it is streamed, on user, or on usage options."""
    text = job(max_tokens=30).choices[0].text
    assert job(max_tokens=30, stream=True, user="u", stream_options={"include_usage": True}).choices[0].text == text
    assert job(max_tokens=30, seed=1).choices[0].text != text
    assert job(max_tokens=30, options=SimulatorOptions(max_model_len=100, seed=1)).choices[0].text != text
    other = [{"role": "user", "content": "Say something else."}]
    assert job(max_tokens=30, messages=other).choices[0].text != text


def test_choices_differ() -> None:
    """Each index has words of its own."""
    texts = [choice.text for choice in job(n=3, max_tokens=30).choices]
    assert len(set(texts)) == 3


def test_several_prompts_have_n_choices_each() -> None:
    """Prompt tokens are kept by prompt, for running usage."""
    made = job("completions", prompt=["a", "b c"], n=2)
    assert (made.prompts, made.prompt_tokens, len(made.choices)) == ((1, 2), 3, 4)


def test_a_completion_is_16_tokens_long_unless_told() -> None:
    """OpenAI's default for this path."""
    assert len(job("completions", prompt="a", ignore_eos=True).choices[0].deltas) == 16


def test_the_context_bounds_an_answer() -> None:
    """Prompt and answer together fill it exactly, and a prompt that fills it is refused."""
    made = job("completions", prompt=[5] * 90, max_tokens=100, ignore_eos=True)
    assert len(made.choices[0].deltas) == 10
    with pytest.raises(WireError, match="maximum context length is 100"):
        job("completions", prompt=[5] * 100)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({}, "none"),
        ({"stream_options": {}}, "none"),
        ({"stream_options": {"include_usage": False, "continuous_usage_stats": True}}, "none"),
        ({"stream_options": {"include_usage": True}}, "end"),
        ({"stream_options": {"include_usage": True, "continuous_usage_stats": True}}, "every"),
    ],
)
def test_usage_follows_the_stream_options(body: dict[str, Any], usage: str) -> None:
    """continuous_usage_stats alone does nothing."""
    assert job(stream=True, **body).usage == usage
    forced = SimulatorOptions(force_include_usage=True)
    assert job(options=forced, stream=True, **body).usage == "every"


def test_lone_surrogate_does_not_crash() -> None:
    """JSON can name a character that UTF-8 cannot hold; it comes back as a question mark."""
    with pytest.raises(WireError) as caught:
        job(model=json.loads('"\\ud800"'))
    assert b"The model `?` does not exist" in caught.value.body


def call(arguments: object) -> dict[str, Any]:
    """A message that says that a tool was called."""
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


DEEP = "[" * 5000
CALLED = [call(DEEP), *HELLO]
READERS: dict[str, Callable[[], object]] = {
    "chat": lambda: job(messages=CALLED),
    "responses": lambda: job("responses", input=[{"type": "function_call", "name": "f", "arguments": DEEP}, *HELLO]),
    "invocations": lambda: parse_invocation({"messages": CALLED}, OPTIONS),
    "tokenize": lambda: pieces_to_tokenize({"messages": CALLED}, OPTIONS),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_arguments_nested_too_deep_are_an_unhandled_500(read: Callable[[], object]) -> None:
    """vLLM's JSON parser gives up on them, wherever a conversation is read."""
    with pytest.raises(WireError) as caught:
        read()
    assert (caught.value.status, caught.value.unhandled, caught.value.varies) == (500, True, False)


@pytest.mark.parametrize("arguments", ["{}", "[" * 500, "[]" * 5000, "no JSON", "", None, {"a": 1}, 3])
def test_other_arguments_are_an_ordinary_job(arguments: object) -> None:
    """Text that is not JSON counts as no arguments."""
    assert job(messages=[call(arguments), *HELLO]).choices


@pytest.mark.parametrize("calls", [None, 3, [3], [{}], [{"function": 3}]])
def test_tool_calls_of_any_form_do_not_crash(calls: object) -> None:
    """vLLM's checks of them are not simulated."""
    assert job(messages=[{"role": "assistant", "content": "x", "tool_calls": calls}, *HELLO]).choices


def test_an_invocation_is_what_its_body_looks_like() -> None:
    """A body with messages is a chat, any other one a completion; the model's name does not matter."""
    assert parse_invocation({"messages": HELLO, "model": "nope"}, OPTIONS).family == "chat"
    assert parse_invocation({"prompt": "a", "model": "nope"}, OPTIONS).family == "completions"


_TEXT = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too: JSON can say "\\ud800"
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["messages", "prompt", "input", "model", "max_tokens", "n", "stop", "stream", "stream_options", "temperature"]


@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(_FIELDS), _JSON) | _JSON)
def test_any_json_is_a_job_or_a_refusal(family: ApiFamily, data: object) -> None:
    """No body has another result; and the refusal can be sent."""
    try:
        made = parse_job(family, data, OPTIONS)
        assert all(choice.deltas for choice in made.choices)
    except WireError as error:
        refusal = error
    else:
        return
    assert 400 <= refusal.status < 500
    json.loads(refusal.body)


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_a_refusal(body: bytes) -> None:
    """Any bytes with the media type application/json."""
    try:
        parse_json("application/json", body)
    except WireError as error:
        status = error.status
    else:
        status = 400
    assert status == 400
