"""Usage is found where vLLM writes it, and nowhere else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.usage import TokenUsage, fingerprint_of, is_usage_only_event, usage_of, with_fingerprint

CHUNK = '{"id":"x","object":"chat.completion.chunk","choices":[%s]%s}'
TOLD = ',"usage":{"prompt_tokens":18,"total_tokens":23,"completion_tokens":5}'


def event(data: str, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + data.encode() + b"\n\n"


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        pytest.param(event(CHUNK % ("", TOLD)), TokenUsage(18, 5), id="chat stream (13)"),
        pytest.param(event(CHUNK % ('{"delta":{"content":"a"}}', TOLD)), TokenUsage(18, 5), id="on every event (14)"),
        pytest.param(
            ('{"choices":[{"message":{"content":"a"}}]' + TOLD + "}").encode(), TokenUsage(18, 5), id="chat (10)"
        ),
        pytest.param(b'{"data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}', TokenUsage(3, 0), id="rerank (154)"),
        pytest.param(
            b'{"usage":{"prompt_tokens":3,"total_tokens":3,"completion_tokens":0,"prompt_tokens_details":null}}',
            TokenUsage(3, 0),
            id="score (153)",
        ),
        pytest.param(b'{"usage":{"prompt_tokens":3,"total_tokens":5}}', TokenUsage(3, 2), id="total only"),
        pytest.param(
            b'{"object":"response","usage":{"input_tokens":14,"output_tokens":3,"total_tokens":17}}',
            TokenUsage(14, 3),
            id="responses (22)",
        ),
        pytest.param(
            event(
                '{"response":{"usage":{"input_tokens":14,"input_tokens_details":{"cached_tokens":0},"output_tokens":3}},'
                '"type":"response.completed"}',
                "response.completed",
            ),
            TokenUsage(14, 3, 0),
            id="responses stream (23)",
        ),
        pytest.param(
            event('{"response":{"usage":null},"type":"response.created"}', "response.created"), None, id="created (23)"
        ),
        pytest.param(
            event(
                '{"type":"message_start","message":{"usage":{"input_tokens":18,"output_tokens":0}}}', "message_start"
            ),
            TokenUsage(18, 0),
            id="messages start (25)",
        ),
        pytest.param(
            event('{"type":"message_delta","usage":{"input_tokens":18,"output_tokens":3}}', "message_delta"),
            TokenUsage(18, 3),
            id="messages delta (25)",
        ),
        pytest.param(b'{"usage":null,"choices":[]}', None, id="null"),
        pytest.param(b'{"usage":{}}', None, id="empty"),
        pytest.param(b'{"usage":{"prompt_tokens":"3"}}', None, id="wrong type"),
        pytest.param(b'{"usage":{"prompt_tokens":-3}}', None, id="negative"),
        pytest.param(b'{"usage":{"prompt_tokens":3', None, id="cut"),
        pytest.param(b'{"x":{"usage":{"prompt_tokens":3,"completion_tokens":1}}}', None, id="elsewhere"),
        pytest.param(b'{"choices":["usage"]}', None, id="a value"),
        pytest.param(event("[DONE]"), None, id="done"),
        pytest.param(b'<html>"usage"</html>', None, id="not json"),
        pytest.param(b'"usage"' + b"[" * 100_000, None, id="junk"),
        pytest.param(b'{"usage":' + b"[" * 100_000, None, id="deep"),
        pytest.param(b'{"x":"\xff","usage":{"prompt_tokens":3}}', TokenUsage(3, 0), id="bad utf-8 beside it"),
    ],
)
def test_usage_is_read_where_it_stands(answer: bytes, usage: TokenUsage | None) -> None:
    """Every place that vLLM was seen to use; None for anything else, and never an exception."""
    assert usage_of(answer) == usage


@given(st.text('usage":{}prompt_tokens1,\\ ', max_size=60))
def test_a_models_text_cannot_pose_as_usage(text: str) -> None:
    """Whatever a model writes is a JSON string."""
    assert usage_of(json.dumps({"choices": [{"delta": {"content": text}}]}).encode()) is None
    quoted = json.dumps({"choices": [], "usage": {"prompt_tokens": 1}})
    chunk = event(json.dumps({"choices": [{"delta": {"content": text + quoted}}]}))
    assert usage_of(chunk) is None
    assert not is_usage_only_event(chunk)


@given(st.binary(max_size=40))
def test_no_bytes_make_it_raise(junk: bytes) -> None:
    """An answer is relayed whatever its bytes; reading its usage must not break that."""
    for answer in (junk + b'"usage"', b'{"usage":' + junk, b'data: {"choices":[],"usage":' + junk):
        usage_of(answer)
        is_usage_only_event(answer)


@pytest.mark.parametrize(
    ("data", "only"),
    [
        (CHUNK % ("", TOLD), True),
        (CHUNK % ('{"delta":{}}', TOLD), False),
        (CHUNK % ("", ""), False),
        (CHUNK % ("", ',"usage":null'), False),
        ('{"usage":{"prompt_tokens":1}}', False),
        ("[DONE]", False),
    ],
)
def test_the_extra_usage_event_is_known_by_having_no_choices(data: str, only: bool) -> None:
    """Only the event that `include_usage` adds may be taken out."""
    assert is_usage_only_event(event(data)) is only
    assert is_usage_only_event(event(data).replace(b"\n", b"\r\n")) is only


@pytest.mark.parametrize(
    ("data", "fingerprint"),
    [
        ('{"choices":[],"system_fingerprint":"vllm-0.32.0-b2074354"}', b'"vllm-0.32.0-b2074354"'),
        ('{"system_fingerprint" : "\\u00fc \u00fc"}', '"\\u00fc \u00fc"'.encode()),
        ('{"system_fingerprint":null}', b""),
        ('{"system_fingerprint":7}', b""),
        ("{}", b""),
        ("[DONE]", b""),
        ('{"system_fingerprint":"', b""),
    ],
)
def test_fingerprint_is_read_as_it_is_written(data: str, fingerprint: bytes) -> None:
    """A text, byte for byte; a value of another type is ignored."""
    assert fingerprint_of(event(data)) == fingerprint


@pytest.mark.parametrize(
    ("data", "result"),
    [
        ('data: {"a":{}}\n\n', 'data: {"a":{},"system_fingerprint":"x"}\n\n'),
        ('data: {"a":{} } \r\n\r\n', 'data: {"a":{} ,"system_fingerprint":"x"} \r\n\r\n'),
        ('data: {"system_fingerprint":null}\n\n', 'data: {"system_fingerprint":null}\n\n'),
        ('data: {"a":1}\nid: 5\n\n', 'data: {"a":1}\nid: 5\n\n'),
        ("data: [DONE]\n\n", "data: [DONE]\n\n"),
    ],
    ids=["as vLLM writes it", "other spaces", "there already", "a field behind it", "no object"],
)
def test_fingerprint_is_put_at_the_end(data: str, result: str) -> None:
    """Of the object; an event of an unknown form stays as it is."""
    assert with_fingerprint(data.encode(), b'"x"').decode() == result
    assert with_fingerprint(data.encode(), b"").decode() == data


# -- cached tokens -------------------------------------------------------------------------------------------------

CHAT_DETAILS = (
    b'{"choices":[],"usage":{"prompt_tokens":611,"total_tokens":613,"prompt_tokens_details":{"cached_tokens":512}}}'
)
EVENT_DETAILS = b"data: " + CHAT_DETAILS + b"\n\n"
RESPONSES_DETAILS = (
    b'{"output":[],"usage":{"input_tokens":14,"input_tokens_details":{"cached_tokens":8,"cached_tokens_per_turn":[]}}}'
)
MESSAGES_DETAILS = (
    b'{"type":"message","usage":{"input_tokens":3,"output_tokens":5,'
    b'"cache_read_input_tokens":16,"cache_creation_input_tokens":2}}'
)

CACHED: dict[str, tuple[bytes, int | None]] = {
    "chat": (CHAT_DETAILS, 512),
    "a stream's event": (EVENT_DETAILS, 512),
    "responses": (RESPONSES_DETAILS, 8),
    "messages": (MESSAGES_DETAILS, 16),
    "spaces": (b'{"usage" : {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens" : 5 } } }', 5),
    "details are null": (b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":null}}', None),
    "not a number": (b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":null}}}', None),
    "negative": (b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":-5}}}', None),
    "another shape": (b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":[5]}}', None),
}


@pytest.mark.parametrize(("answer", "cached"), CACHED.values(), ids=CACHED)
def test_cached_tokens(answer: bytes, cached: int | None) -> None:
    """As each path reports them; None where none are reported, or they cannot be true."""
    usage = usage_of(answer)
    assert usage is not None
    assert usage.cached_tokens == cached


def test_cached_tokens_of_a_message_are_part_of_its_input() -> None:
    """Anthropic counts them beside `input_tokens`, and the gateway counts the whole prompt on every path."""
    usage = usage_of(MESSAGES_DETAILS)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (21, 5)
