"""An answer that broke off and goes on is the uncut one: what is read of the first part, asked for, and joined."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.chat_cut import ChatCut, chat_cut
from aiaas.openai.joint import DiffersError, Joint
from aiaas.openai.resumable import Continuation, NotResumableError, ResumeMode, continuation, with_bounds

FRAME = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":%d,"model":"m"'
ROLE = {"role": "assistant", "content": ""}


def event(delta: dict[str, Any], finish: str | None = None, created: int = 1) -> bytes:
    """As vLLM 0.32 writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    text = json.dumps([choice], separators=(",", ":"), ensure_ascii=False)
    return f'data: {FRAME % created},"choices":{text}}}\n\n'.encode()


def usage_event(prompt: int, completion: int, created: int = 1) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return f'data: {FRAME % created},"choices":[],"usage":{json.dumps(usage, separators=(",", ":"))}}}\n\n'.encode()


def request(**fields: Any) -> bytes:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 0}
    return json.dumps(asked | fields).encode()


def cut_of(content: str, **fields: Any) -> ChatCut:
    return ChatCut((FRAME % 1).encode(), content=content, events=9, **fields)


def joined(cut: ChatCut, rest: Continuation, events: list[bytes], delivered: int = 0) -> bytes:
    joint = Joint(cut, rest, delivered)
    return b"".join(joint.event(each) for each in events)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=12), st.data())
def test_answer_that_goes_on_is_the_uncut_one(parts: list[str], data: st.DataObject) -> None:
    """Wherever it breaks off, and however the second engine divides the text, the client reads the whole text once."""
    at = data.draw(st.integers(1, len(parts) - 1))
    first = b"".join([event(ROLE), *(event({"content": part}) for part in parts[:at])])
    cut = chat_cut(first)
    assert cut is not None
    rest = continuation(request(stop=["zzz"]), cut, "exact")
    asked = json.loads(rest.body)
    sent = asked["messages"][-1]["content"] if asked["messages"][-1]["role"] == "assistant" else ""
    left = "".join(parts)[len(sent) :]
    where = sorted(data.draw(st.lists(st.integers(0, len(left)), max_size=4)))
    pieces = [left[a:b] for a, b in zip([0, *where], [*where, len(left)], strict=True)]
    second = [event(ROLE, created=2), *(event({"content": piece}, created=2) for piece in pieces)]
    second += [event({"content": ""}, "stop", created=2), usage_event(10 + at, 5, created=2), b"data: [DONE]\n\n"]
    whole = first + joined(cut, rest, second)
    read = chat_cut(whole.replace(b"data: [DONE]\n\n", b""))
    assert read is not None
    assert (read.content, read.finished) == ("".join(parts), True)
    assert (whole.count(b'"created":1'), whole.count(b'"created":2'), whole.count(b"[DONE]")) == (
        whole.count(b'"id"'),
        0,
        1,
    )
    assert whole.count(b'"role"') == 1


def test_usage_is_that_of_the_whole_answer() -> None:
    """The second engine counts the delivered text among its prompt; the sum of both stays the same."""
    cut = cut_of("so far")
    rest = continuation(request(), cut, "exact")
    shown = joined(cut, rest, [usage_event(12, 3, created=2)], delivered=2)
    assert shown == usage_event(10, 5)


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


def test_answer_of_which_only_the_role_came_is_asked_for_again() -> None:
    """The request is the client's own, and the second role is dropped."""
    cut = chat_cut(event(ROLE))
    assert cut is not None
    rest = continuation(request(), cut, "exact")
    assert rest.body == request()
    assert joined(cut, rest, [event(ROLE, created=2), event({"content": "a"}, created=2)]) == event({"content": "a"})


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param([event({"content": "XX"})], id="other text"),
        pytest.param([event({"reasoning": "hm"})], id="thinking"),
        pytest.param([event({"content": "\n"}), event({}, "stop")], id="ends before the overlap"),
        pytest.param([b'data: {"id":1}\n\n'], id="another event"),
        pytest.param([event({"content": "a", "new": 1})], id="unknown field"),
    ],
)
def test_rest_that_does_not_fit_is_refused(wrong: list[bytes]) -> None:
    """What the second engine writes instead of the overlap must never reach the client."""
    cut = cut_of("if x:\n    ")
    rest = continuation(request(), cut, "exact")
    assert rest.overlap == "\n    "
    with pytest.raises(DiffersError):
        joined(cut, rest, wrong)


def test_blanks_that_a_template_ate_are_dropped_where_near_is_enough() -> None:
    """A sampled rest need not begin with the same blanks: its own are dropped, the client's stay."""
    cut = cut_of("def f():\n    ")
    rest = continuation(request(temperature=1), cut, "near")
    events = [event({"content": "\n"}, created=2), event({"content": "  x"}, created=2)]
    assert joined(cut, rest, events) == event({"content": "x"})


@pytest.mark.parametrize(
    "relayed",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"data: {}\n\n", id="no choices"),
        pytest.param(event({"content": "a", "audio": {"data": "x"}}), id="sound"),
        pytest.param(event({"content": "a"}) + event({"content": "b"}).replace(b'"index":0', b'"index":1'), id="two"),
    ],
)
def test_relayed_bytes_that_are_not_clear_are_no_cut(relayed: bytes) -> None:
    """Nothing goes on from what was not understood."""
    assert chat_cut(relayed) is None


def test_finish_and_calls_are_seen() -> None:
    """An answer that has ended needs no rest, and one with a call has none."""
    ended = chat_cut(event({"content": "a"}) + b": ping\n\n" + event({"content": ""}, "stop"))
    called = chat_cut(event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}))
    assert ended is not None
    assert called is not None
    assert (ended.finished, ended.calls, called.finished, called.calls) == (True, False, False, True)
