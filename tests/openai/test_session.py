"""aiaas.openai.session: the session that a request names, or the opening of its conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.openai.session import (
    HEADERS,
    LONGEST_NAME,
    SEARCHED_BYTES,
    SYSTEM_BYTES,
    USER_BYTES,
    SessionFields,
    opening_number,
    opening_of,
    session_in_body,
    session_in_headers,
    session_number,
)
from tests.cputime import cpu_time

SYSTEM = {"role": "system", "content": 'Say "hi" to {names} and [more].'}
HELLO = {"role": "user", "content": "Hello!"}
HI = {"role": "assistant", "content": "Hi"}
SESSION = "7f1a9c0e-0000-4000-8000-0123456789ab"
USER_ID = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": SESSION})
OLD_USER_ID = f"user_{'0' * 64}_account__session_{SESSION}"


def fields(body: dict[str, Any] | bytes, path: str = paths.CHAT) -> SessionFields:
    """The fields of a body, as a client writes it."""
    written = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    found = peek(written, path, session=True).session
    assert found is not None
    return found


def chat(*messages: dict[str, Any], **others: Any) -> SessionFields:
    """Those of a chat."""
    return fields({"model": "m", "messages": list(messages), **others})


def claude(turn: int, **others: Any) -> dict[str, Any]:
    """A body of Claude Code in its first or a later turn: 76 KB, the mark moves to the newest message."""
    mark = {"cache_control": {"type": "ephemeral"}}
    first = [{"type": "text", "text": "<system-reminder>today</system-reminder>"}, {"type": "text", "text": "Fix it."}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    if turn == 1:
        first[-1] = {**first[-1], **mark}
    for number in range(1, turn):
        messages.append({"role": "assistant", "content": [{"type": "tool_use", "id": f"t{number}", "input": {}}]})
        result = {"type": "tool_result", "tool_use_id": f"t{number}", "content": "done"}
        messages.append({"role": "user", "content": [{**result, **(mark if number == turn - 1 else {})}]})
    system = [{"type": "text", "text": "You are Claude Code.", **mark}, {"type": "text", "text": "x" * 44_000, **mark}]
    tools = [{"name": f"tool {number}", "description": "y" * 1000, "input_schema": {}} for number in range(30)]
    return {"model": "m", "messages": messages, "system": system, **others, "tools": tools, "max_tokens": 32_000}


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADERS)
def test_header_names_the_session(name: str) -> None:
    """Each known one; the first of several; an empty one names nothing."""
    assert session_in_headers({"accept": "*/*", name: "abc"}) == "abc"
    assert session_in_headers({name: "", "x-conversation-id": "abc"}) in ("abc", None if name == HEADERS[-1] else "abc")
    assert session_in_headers({"user-agent": "curl"}) is None


NAMED: dict[str, tuple[dict[str, Any], str | None]] = {
    "prompt_cache_key": ({"prompt_cache_key": "k"}, "k"),
    "before metadata": ({"prompt_cache_key": "k", "metadata": {"user_id": USER_ID}}, "k"),
    "Claude Code": ({"metadata": {"user_id": USER_ID}}, SESSION),
    "an older Claude Code": ({"metadata": {"user_id": OLD_USER_ID}}, SESSION),
    "an empty key": ({"prompt_cache_key": ""}, None),
    "null": ({"prompt_cache_key": None, "metadata": None}, None),
    "numbers": ({"prompt_cache_key": 5, "metadata": 5}, None),
    "a user's name": ({"metadata": {"user_id": "alice"}}, None),
    "a number as user": ({"metadata": {"user_id": 5}}, None),
    "JSON without a session": ({"metadata": {"user_id": '{"device_id": "d"}'}}, None),
    "broken JSON": ({"metadata": {"user_id": "{session_id"}}, None),
    "a session that is a list": ({"metadata": {"user_id": '{"session_id": []}'}}, None),
    "too long": ({"prompt_cache_key": "k" * LONGEST_NAME, "metadata": {"x": "y" * LONGEST_NAME}}, None),
    "one that needs escapes": ({"prompt_cache_key": 'é"\n'}, 'é"\n'),
}


@pytest.mark.parametrize(("body", "name"), NAMED.values(), ids=NAMED)
def test_field_names_the_session(body: dict[str, Any], name: str | None) -> None:
    """`prompt_cache_key`, else the session in `metadata.user_id`; other values name nothing, and raise nothing."""
    assert session_in_body(fields({"model": "m", **body})) == name


def test_session_is_found_wherever_it_stands() -> None:
    """Behind 44 KB of Claude Code's system prompt, and in a body that the strict decoder refuses."""
    body = claude(3, metadata={"user_id": USER_ID})
    written = json.dumps(body)
    assert written.index("session_id") > 44_000
    assert session_in_body(fields(body, paths.MESSAGES)) == SESSION
    assert session_in_body(fields({**body, "max_tokens": "32000"}, paths.MESSAGES)) == SESSION


def test_key_is_part_of_the_session() -> None:
    """No client can steer another's sessions; the same name is the same number in every process, in 128 bits."""
    assert session_number("a", "s") != session_number("b", "s")
    assert session_number("a", "s") == 290113023086575764778898345646898345897
    assert session_number("a", "s" * 1000) != session_number("a", "s" * 999 + "t")
    assert session_number("a", "\udcff").bit_length() <= 128


# -- openings ------------------------------------------------------------------------------------------------------

ALIKE: dict[str, tuple[SessionFields, SessionFields]] = {
    "turns of a chat": (chat(SYSTEM, HELLO), chat(SYSTEM, HELLO, HI, {"role": "user", "content": "And?"})),
    "no system prompt": (chat(HELLO), chat(HELLO, HI)),
    "other fields": (chat(HELLO), chat(HELLO, temperature=0.5, tools=[{"type": "function"}])),
    "content before role": (
        chat({"content": "Hello!", "role": "user"}),
        chat({"content": "Hello!", "role": "user"}, {"content": "Hi", "role": "assistant"}),
    ),
    "Claude Code's mark moves": (fields(claude(1), paths.MESSAGES), fields(claude(2), paths.MESSAGES)),
    "it moves on": (fields(claude(2), paths.MESSAGES), fields(claude(7), paths.MESSAGES)),
    "responses, items": (
        fields({"model": "m", "instructions": "Be kind.", "input": [HELLO]}, paths.RESPONSES),
        fields({"model": "m", "instructions": "Be kind.", "input": [HELLO, HI, HELLO]}, paths.RESPONSES),
    ),
    "responses, a text": (
        fields({"model": "m", "input": "Hello!"}, paths.RESPONSES),
        fields({"model": "m", "input": "Hello!", "stream": True}, paths.RESPONSES),
    ),
    "completions with a long beginning": (
        fields({"model": "m", "prompt": "x" * 2000 + "a"}, paths.COMPLETIONS),
        fields({"model": "m", "prompt": "x" * 2000 + "b"}, paths.COMPLETIONS),
    ),
    "white space": (
        fields(b'{"messages" : [ {"role" : "user", "content" : "a"} ]}'),
        chat({"role": "user", "content": "a"}),
    ),
}


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_turns_have_the_same_opening(one: SessionFields, other: SessionFields) -> None:
    """Whatever is added to a conversation."""
    assert opening_of(one) == opening_of(other) is not None


DIFFERENT: dict[str, tuple[SessionFields, SessionFields]] = {
    "another question": (chat(SYSTEM, HELLO), chat(SYSTEM, {"role": "user", "content": "Bye!"})),
    "another system prompt": (chat({"role": "system", "content": "x"}, HELLO), chat(SYSTEM, HELLO)),
    "another question under a long system prompt": (
        chat({"role": "system", "content": "x" * 100_000}, HELLO),
        chat({"role": "system", "content": "x" * 100_000}, {"role": "user", "content": "Bye!"}),
    ),
    "another task of Claude Code": (
        fields(claude(1), paths.MESSAGES),
        fields(json.dumps(claude(1)).replace("Fix it.", "Break it.").encode(), paths.MESSAGES),
    ),
    "other instructions": (
        fields({"model": "m", "instructions": "Be kind.", "input": "a"}, paths.RESPONSES),
        fields({"model": "m", "instructions": "Be terse.", "input": "a"}, paths.RESPONSES),
    ),
    "a user who quotes a role": (
        chat({"role": "user", "content": '"role":"user"'}),
        chat({"role": "user", "content": ""}),
    ),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_other_conversations_have_other_openings(one: SessionFields, other: SessionFields) -> None:
    """They may go to another endpoint."""
    assert opening_of(one) != opening_of(other)


def test_body_without_a_conversation_has_no_opening() -> None:
    """Such requests are spread by load."""
    assert opening_of(fields({"model": "m"})) is None
    assert opening_of(chat()) is None
    assert opening_of(fields({"model": "m", "messages": 5})) is None


def test_opening_is_short() -> None:
    """So many bytes at the most, wherever a window cuts a text."""
    for text in ("a" * 50_000, "\\" * 50_000, '"' * 50_000, "]}" * 25_000, "é\n" * 25_000):
        for found in (
            chat({"role": "system", "content": text}, {"role": "user", "content": text}),
            fields({"model": "m", "messages": [HELLO], "system": text}, paths.MESSAGES),
            fields({"model": "m", "prompt": text}, paths.COMPLETIONS),
            fields({"model": "m", "input": text, "instructions": text}, paths.RESPONSES),
        ):
            opening = opening_of(found)
            assert opening is not None
            assert len(opening) <= 2 * SYSTEM_BYTES + USER_BYTES + 4


def test_model_and_key_are_part_of_an_opening() -> None:
    """Two models have no cache in common, and two keys may not."""
    numbers = {opening_number(key, model, b"x") for key in ("a", "b") for model in ("m", "n")}
    assert len(numbers) == 4


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_value_is_an_error(value: Any) -> None:
    """Whatever the fields hold, as vLLM reads them and may refuse them."""
    for name in ("messages", "input", "prompt", "system", "instructions", "metadata", "prompt_cache_key"):
        for found in (fields({"model": "m", name: value}), chat(HELLO, **{name: value} if name != "messages" else {})):
            session_in_body(found)
            opening_of(found)


def test_time_for_an_opening_is_bounded() -> None:
    """A body of 8 MB takes as long as one of the bytes that are searched."""
    long = chat({"role": "system", "content": "x" * SEARCHED_BYTES}, {"role": "user", "content": "y" * 8_000_000})
    short = chat({"role": "system", "content": "x" * SEARCHED_BYTES}, HELLO)
    assert cpu_time(lambda: opening_of(long)) < 5 * cpu_time(lambda: opening_of(short))
