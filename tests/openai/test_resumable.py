"""aiaas.openai.resumable: which answers go on, and the request that makes another engine do so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.openai.resumable import NotResumableError, ResumeMode, continuation, counting, with_bounds
from tests.openai.chat_bytes import cut_of, request


def test_bounds_are_what_is_left_of_the_clients_own() -> None:
    """The rest of each bound of the output; nothing is left where it is reached."""
    body = with_bounds(request(max_tokens=10, max_completion_tokens=12, min_tokens=6), 8)
    assert {name: json.loads(body)[name] for name in ("max_tokens", "max_completion_tokens", "min_tokens")} == {
        "max_tokens": 2,
        "max_completion_tokens": 4,
        "min_tokens": 0,
    }
    with pytest.raises(NotResumableError, match="bound"):
        with_bounds(request(max_tokens=8), 8)


@pytest.mark.parametrize(
    ("fields", "cut", "mode"),
    [
        pytest.param({"n": 2}, {}, "near", id="two choices"),
        pytest.param({"response_format": {"type": "json_object"}}, {}, "near", id="grammar"),
        pytest.param({"structured_outputs": {"regex": "a"}}, {}, "near", id="structured outputs"),
        pytest.param({"tool_choice": "required"}, {}, "near", id="tool required"),
        pytest.param({"new_field": 1}, {}, "near", id="unknown field"),
        pytest.param({"echo": True}, {}, "near", id="echo"),
        pytest.param({"continue_final_message": True}, {}, "near", id="continues already"),
        pytest.param({"add_generation_prompt": False}, {}, "near", id="no generation prompt"),
        pytest.param({"prompt_logprobs": 1}, {}, "near", id="logprobs of the prompt"),
        pytest.param({"use_beam_search": True}, {}, "near", id="beam search"),
        pytest.param({"stream_options": {"continuous_usage_stats": True}}, {}, "near", id="usage in each event"),
        pytest.param({"messages": [{"role": "assistant", "content": "x"}]}, {}, "near", id="prefilled"),
        pytest.param({}, {"calls": True}, "near", id="tool call begun"),
        pytest.param({}, {"content": "", "reasoning": "hm"}, "near", id="cut in thinking"),
        pytest.param({"temperature": 1, "stop": ["x"]}, {}, "near", id="stop strings, sampled"),
        pytest.param({"logprobs": True}, {"content": "a\n"}, "near", id="logprobs of an overlap"),
        pytest.param({"temperature": 1, "seed": 3}, {}, "exact", id="seed"),
        pytest.param({"frequency_penalty": 0.5}, {}, "exact", id="frequency penalty"),
        pytest.param({"presence_penalty": 0.5}, {}, "exact", id="presence penalty"),
        pytest.param({}, {"content": "a \ufffd b"}, "exact", id="not UTF-8"),
        pytest.param({}, {"reasoning": "hm"}, "exact", id="thinking before content"),
        pytest.param({"temperature": None}, {"content": "a\n"}, "exact", id="blank at the end, sampled"),
    ],
)
def test_answers_that_must_not_go_on(fields: dict[str, Any], cut: dict[str, Any], mode: ResumeMode) -> None:
    """Each row of the docs' table whose rest would be another text, or in another channel."""
    with pytest.raises(NotResumableError):
        continuation(request(**fields), cut_of(**({"content": "so far"} | cut)), mode)


@pytest.mark.parametrize(
    ("fields", "cut", "mode"),
    [
        pytest.param({"temperature": 1}, {}, "exact", id="sampled"),
        pytest.param({"tools": [{}], "tool_choice": "auto"}, {}, "exact", id="tools offered"),
        pytest.param({"response_format": {"type": "text"}, "n": 1, "stop": None}, {}, "exact", id="defaults written"),
        pytest.param({"repetition_penalty": 1.2, "logprobs": True}, {}, "exact", id="repetition penalty"),
        pytest.param({"temperature": 1, "seed": 3}, {}, "near", id="seed"),
        pytest.param({"frequency_penalty": 0.5}, {}, "near", id="penalty"),
        pytest.param({}, {"reasoning": "hm"}, "near", id="thinking before content"),
    ],
)
def test_answers_that_go_on(fields: dict[str, Any], cut: dict[str, Any], mode: ResumeMode) -> None:
    """The delivered text is the last message, open at its end; what the client wrote stays."""
    asked = json.loads(continuation(request(**fields), cut_of("so far", **cut), mode).body)
    thinking = {"reasoning": cut["reasoning"]} if cut else {}
    assert asked["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "so far", **thinking},
    ]
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert asked.get("seed") is None


def test_delivered_tokens_are_the_difference_of_two_prompts() -> None:
    """Both have the fields that shape a prompt, and the model's name at the engine."""
    body = request(tools=[{"type": "function"}], chat_template_kwargs={"a": 1}, max_tokens=3)
    rest = continuation(body, cut_of("so far"), "exact")
    asked = counting(body, rest.body, "m2")
    assert asked is not None
    prompt, whole = map(json.loads, asked)
    assert prompt == {
        "model": "m2",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"a": 1},
    }
    assert whole == prompt | {
        "messages": [*prompt["messages"], {"role": "assistant", "content": "so far"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def test_an_answer_without_text_has_no_tokens_to_count() -> None:
    """The request is the client's own again."""
    assert counting(request(), request(), "m") is None
