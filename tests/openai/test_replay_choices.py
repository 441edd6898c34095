"""The rest of a chat or of a completion that is written once more: with the delivered part, it is the whole answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.joint import DiffersError
from aiaas.openai.paths import CHAT, COMPLETIONS
from aiaas.openai.replay import Replayed
from aiaas.openai.resumable import NotResumableError
from tests.openai.replayed_streams import (
    DONE,
    Answer,
    Engine,
    Unit,
    answers,
    chat_choice,
    event,
    heard,
    role,
    stream,
    text_choice,
    units,
)

FIRST = Engine(1, "first")
SECOND = Engine(2, "second")
PATHS = st.sampled_from([CHAT, COMPLETIONS])


@given(st.data(), PATHS, st.booleans(), st.booleans())
def test_answer_cut_anywhere_and_replayed_is_the_whole_one(
    data: st.DataObject, path: str, logprobs: bool, usage: bool
) -> None:
    """However both engines divide it: each text and each token once, one id, one role, finish, usage and `[DONE]`."""
    written = data.draw(answers(path))
    first = stream(data, path, written, FIRST._replace(logprobs=logprobs, usage=usage))
    second = stream(data, path, written, SECOND._replace(logprobs=logprobs, usage=usage))
    cut = data.draw(st.integers(0, len(first)))
    relayed = b": ping\n\n".join(first[:cut])
    replayed = Replayed(path, relayed)
    rest = [replayed.event(each) for each in second]
    whole = b"".join([relayed, *rest])
    assert heard(whole) == heard(b"".join(second))
    assert (whole.count(b"second") > 0) <= (cut == 0 or b"call-second" in whole)
    assert replayed.begun == any(rest)


@given(st.data(), PATHS)
def test_second_answer_that_differs_shows_nothing_wrong(data: st.DataObject, path: str) -> None:
    """One character is another one: an error, and the client has nothing that neither engine wrote in that place."""
    written = data.draw(answers(path).filter(lambda each: any(units(answer) for answer in each)))
    index = data.draw(st.sampled_from([at for at, answer in enumerate(written) if units(answer)]))
    changed = [*written]
    changed[index] = _changed(data, written[index])
    first = stream(data, path, written, FIRST)
    cut = next(at for at, each in enumerate(first) if b'"finish_reason":"' in each and b'[{"index":%d' % index in each)
    relayed = b"".join(first[: data.draw(st.integers(cut + 1, len(first)))])
    replayed = Replayed(path, relayed)
    shown = []
    with pytest.raises(DiffersError):
        shown += [replayed.event(each) for each in stream(data, path, changed, SECOND)]
    had, has = heard(relayed), heard(relayed + b"".join(shown))
    assert all(has[name] == had[name] for name in had if name.startswith(f"{index} "))


def _changed(data: st.DataObject, answer: Answer) -> Answer:
    """The answer with one other character or name."""
    at = data.draw(st.integers(0, len(units(answer)) - 1))
    for name in ("reasoning", "content"):
        text = getattr(answer, name)
        if at < len(text):
            return answer._replace(**{name: text[:at] + "Z" + text[at + 1 :]})
        at -= len(text)
    name, arguments = answer.calls[0]
    return answer._replace(calls=((name, "Z" + arguments), *answer.calls[1:]))


def chat(delta: dict[str, Any], finish: str | None = None, index: int = 0, **fields: Any) -> bytes:
    """An event of a chat, of either engine."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish} | fields
    return event([choice], FIRST)


def units_of(text: str) -> list[Unit]:
    return [Unit("content", each) for each in text]


def test_half_delivered_event_keeps_its_other_bytes() -> None:
    """The text is the rest of it, the tokens are the rest of them; the prompt's tokens are not sent again."""
    engine = FIRST._replace(logprobs=True)
    first = event([text_choice(0, units_of("ab"), 0, engine, None)], engine)
    second = event([text_choice(0, units_of('ab"c'), 0, engine, None)], engine)
    left = text_choice(0, units_of('"c'), 2, engine, None)
    assert Replayed(COMPLETIONS, first).event(second) == event([left], engine)


def test_half_delivered_call_goes_on_without_its_id() -> None:
    """Clients join the pieces of ids and names, too."""
    call = [Unit("call", "get"), *(Unit("arguments", each) for each in '{"a":1}')]
    first = role(0, FIRST) + event([chat_choice(0, call[:4], 0, FIRST, None)], FIRST)
    shown = Replayed(CHAT, first).event(event([chat_choice(0, call, 0, SECOND, "tool_calls")], SECOND))
    choice = json.loads(shown.removeprefix(b"data: "))["choices"][0]
    assert choice["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]}
    assert choice["finish_reason"] == "tool_calls"


def test_role_and_old_calls_of_a_rewritten_event_are_left_out() -> None:
    """Some engines write the role in each event, and the next call beside the end of one that was delivered."""
    had = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    new = {"index": 1, "id": "d", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    replayed = Replayed(CHAT, chat({"role": "assistant", "content": "a", "tool_calls": [had]}))
    both = chat({"role": "assistant", "content": "a", "tool_calls": [had, new]})
    assert replayed.event(both) == chat({"content": "", "tool_calls": [new]})
    replayed = Replayed(CHAT, chat({"content": "a", "tool_calls": [had]}))
    end = chat({"content": "a", "tool_calls": [had]}, "tool_calls")
    assert replayed.event(end) == chat({"content": ""}, "tool_calls")


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([chat({"content": "dX"})], id="content before all of the thinking"),
        pytest.param([chat({"reasoning": "abX"}), chat({"content": "d"})], id="other thinking"),
        pytest.param([chat({"reasoning": "abcX", "content": "d"})], id="more thinking than before the content"),
        pytest.param([chat({"reasoning": "abc"}), chat({"content": ""}, "stop")], id="ends before the content"),
        pytest.param([chat({"reasoning": "abc"}), DONE], id="done before the content"),
        pytest.param([chat({"reasoning": "abc"}), event([], FIRST, usage={"a": 1})], id="usage before the content"),
        pytest.param([chat({"reasoning": "abc", "content": "d"}, "abort")], id="broke off, too"),
        pytest.param([chat({"tool_calls": [{"index": 0, "function": {"name": "f"}}]})], id="a call instead"),
        pytest.param([b'data: {"error":{"message":"EngineCore"}}\n\n'], id="the engine's error"),
        pytest.param([b"data: {\n\n"], id="no JSON"),
        pytest.param([b"data: " + b"[" * 100_000 + b"\n\n"], id="nested deeply"),
        pytest.param([chat({"content": "d"}).replace(b'"created":1', b'"created":' + b"9" * 5000)], id="huge number"),
        pytest.param([chat({"content": "d"}).replace(b'"model":"m"', b'"model":"n"')], id="another model"),
        pytest.param([chat({"reasoning": "abc", "new": 1})], id="unknown field of a delta"),
        pytest.param([chat({"reasoning": "abc"}, citations=[1])], id="unknown field of a choice"),
        pytest.param([event([], FIRST)], id="neither choices nor usage"),
    ],
)
def test_rest_that_does_not_fit_is_refused(second: list[bytes]) -> None:
    """Nothing of it reaches the client."""
    replayed = Replayed(CHAT, role(0, FIRST) + chat({"reasoning": "abc"}) + chat({"content": "d"}))
    shown = []
    with pytest.raises(DiffersError):
        shown += [replayed.event(each) for each in second]
    assert not any(shown)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([chat({"content": "ab"}, "stop")], id="more text than the finished answer had"),
        pytest.param([chat({"content": "a"}, "length")], id="another reason"),
        pytest.param([chat({"content": "a"}), DONE], id="not finished again"),
        pytest.param([chat({"content": "a"}, "stop"), chat({"content": "b"})], id="text behind the end"),
    ],
)
def test_finished_choice_stays_as_it_was_finished(second: list[bytes]) -> None:
    """The client has its finish_reason, so only usage and `[DONE]` can come."""
    replayed = Replayed(CHAT, chat({"content": "a"}, "stop"))
    with pytest.raises(DiffersError):
        _ = [replayed.event(each) for each in second]


@pytest.mark.parametrize(
    "relayed",
    [
        pytest.param(b"data: {}\n\n", id="no choices"),
        pytest.param(chat({"content": "a", "audio": {"data": "x"}}), id="sound"),
        pytest.param(chat({"content": "a", "function_call": {"name": "x"}}), id="old call"),
        pytest.param(chat({"content": "a"}, citations=[1]), id="unknown field"),
        pytest.param(chat({"content": "a"}) + b"data: {", id="half an event"),
        pytest.param(chat({"content": "a"}) + chat({"content": "a"}).replace(b"first", b"other"), id="two answers"),
        pytest.param(chat({"content": "a"}, "stop") + chat({"content": "a"}), id="text behind the end"),
        pytest.param(chat({"content": "a"}).replace(b',"choices"', b', "choices"'), id="another way of writing"),
        pytest.param(b"data: " + b"[" * 100_000 + b"\n\n", id="nested deeply"),
    ],
)
def test_delivered_bytes_that_are_not_clear_are_not_resumable(relayed: bytes) -> None:
    """Nothing is compared with what was not understood."""
    with pytest.raises(NotResumableError):
        Replayed(CHAT, relayed)


def test_thinking_under_two_names_is_compared_under_both() -> None:
    """Some versions wrote `reasoning_content` beside `reasoning`."""
    replayed = Replayed(CHAT, chat({"reasoning": "ab", "reasoning_content": "ab"}))
    both = replayed.event(chat({"reasoning": "abc", "reasoning_content": "abc"}))
    assert both == chat({"reasoning": "c", "reasoning_content": "c"})


def test_lists_of_tokens_that_do_not_match_are_refused() -> None:
    """Which of them were delivered is not clear."""
    engine = FIRST._replace(logprobs=True)
    choice = text_choice(0, units_of("ab"), 0, engine, None)
    choice["logprobs"]["token_logprobs"].pop()
    with pytest.raises(DiffersError):
        Replayed(COMPLETIONS, b"").event(event([choice], engine))
