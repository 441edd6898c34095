"""How many LLM tokens a request took, as vLLM itself counted them, out of an answer's body or one event of its stream.

Where it stands (transcript):
    chat, completions   usage.prompt_tokens, completion_tokens; streamed only when asked, in an event of its own (13),
                        or on every event (14, 110)
    embeddings, score, rerank   usage.prompt_tokens, and total_tokens (150, 153, 154)
    responses           usage.input_tokens, output_tokens (22); streamed in `response.completed` below `response` (23)
    messages            usage.input_tokens, output_tokens (24); streamed in `message_start` below `message`, then in
                        each `message_delta` (25): the last one counts

A model's text may hold the word: inside a JSON string its quotes are escaped, so the search for `"usage"` is a cheap
gate, and the parse behind it looks at the right place only. Malformed bytes give None: usage is never a reason to fail.
So do counts that cannot be true: negative ones, fractions, `true`, and more than MOST_TOKENS.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas.openai.sse import event_data

# LLM tokens of one request: more than any engine can have computed for it, and a sum of billions of such numbers still
# fits the 63 bits that SQLite and Redis have for one.
MOST_TOKENS: Final = 1_000_000_000


class TokenUsage(msgspec.Struct, frozen=True):
    """LLM tokens of one request."""

    input_tokens: int
    output_tokens: int


def usage_of(body_or_event: bytes) -> TokenUsage | None:
    """The usage told by a whole JSON body or by one whole event; None where it tells none. Never raises."""
    if body_or_event.find(b'"usage"') < 0:
        return None
    answer = _answer(body_or_event)
    if answer is None:
        return None
    inner = answer.response or answer.message
    told = answer.usage or (inner.usage if isinstance(inner, _Inner) else None)
    if told is None:
        return None
    return _usage(told)


def usage_of_answer(body: bytes) -> TokenUsage | None:
    """The usage told by a whole answer that is no stream: by its own top-level key only. Never raises."""
    try:
        told = _WHOLE.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if told is None else _usage(told)


def is_usage_only_event(event: bytes) -> bool:
    """Whether this is the extra event that `stream_options.include_usage` adds: no choices, and usage (transcript 13).

    It is to be taken out where the gateway asked for it and the client did not.
    """
    if event.find(b'"usage"') < 0:
        return False
    answer = _answer(event)
    return answer is not None and answer.choices == [] and answer.usage is not None


def fingerprint_of(usage_event: bytes) -> bytes:
    """The `system_fingerprint` in the event that `include_usage` adds, as JSON; b"" where it has none."""
    try:
        told = bytes(_FINGERPRINT.decode(event_data(usage_event) or b"").system_fingerprint)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    return told if told.startswith(b'"') else b""


def with_fingerprint(event: bytes, fingerprint: bytes) -> bytes:
    """The event that finishes a choice, with `fingerprint` at its end unless it has one.

    vLLM writes the fingerprint into its stream's last event with choices. Where it is asked for usage, it writes it
    into the usage event instead.
    """
    end = event.rfind(b"}")
    if not fingerprint or end < 0 or event[end + 1 :].strip() or event.find(b'"system_fingerprint"') >= 0:
        return event
    return b'%b,"system_fingerprint":%b%b' % (event[:end], fingerprint, event[end:])


class _Told(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Inner(msgspec.Struct):
    usage: _Told | None = None


class _Answer(msgspec.Struct):
    usage: _Told | None = None
    choices: list[msgspec.Raw] | None = None
    response: _Inner | None = None
    message: _Inner | None = None


class _Last(msgspec.Struct):
    system_fingerprint: msgspec.Raw = msgspec.Raw(b"")


_FINGERPRINT: Final[msgspec.json.Decoder[_Last]] = msgspec.json.Decoder(_Last)
_WHOLE: Final[msgspec.json.Decoder[_Inner]] = msgspec.json.Decoder(_Inner)
_ANSWER: Final[msgspec.json.Decoder[_Answer]] = msgspec.json.Decoder(_Answer)


def _answer(body_or_event: bytes) -> _Answer | None:
    data = body_or_event if body_or_event[:1] == b"{" else event_data(body_or_event)
    try:
        return _ANSWER.decode(data or body_or_event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _usage(told: _Told) -> TokenUsage | None:
    taken = told.prompt_tokens if told.input_tokens is None else told.input_tokens
    given = told.completion_tokens if told.output_tokens is None else told.output_tokens
    if given is None and taken is not None and told.total_tokens is not None:
        given = told.total_tokens - taken
    if taken is None or not 0 <= taken <= MOST_TOKENS or not 0 <= (given or 0) <= MOST_TOKENS:
        return None
    return TokenUsage(taken, given or 0)
