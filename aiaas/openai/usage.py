"""Read vLLM's own count of a request's LLM tokens from an answer's body or from one event of its stream.

Where each path reports usage (transcript):
    chat, completions   usage.prompt_tokens, completion_tokens; streamed only when asked, in an event of its own (13),
                        or on every event (14, 110)
    embeddings, score, rerank,  usage.prompt_tokens, and total_tokens (150, 153, 154, 155)
      classify, pooling
    /v2/embed                   meta.billed_units.input_tokens and image_tokens, as Cohere's API does
    responses           usage.input_tokens, output_tokens (22); streamed in `response.completed` below `response` (23)
    messages            usage.input_tokens, output_tokens (24); streamed in `message_start` below `message`, then in
                        each `message_delta` (25): the last one counts
    transcriptions      usage.seconds; of a detailed one (`verbose_json`) only `duration`; streamed as for chat
    translations        nothing, but `duration` in a detailed one; streamed as for chat

And the tokens that were in the engine's cache, with vLLM's `--enable-prompt-tokens-details`:
    chat, completions   usage.prompt_tokens_details.cached_tokens
    responses           usage.input_tokens_details.cached_tokens, without the option, too
    messages            usage.cache_read_input_tokens; usage.input_tokens is then without these, and without
                        usage.cache_creation_input_tokens

A model's text may hold the word `usage`, but quotes inside a JSON string are escaped. So a search for `"usage"` is a
cheap first check, and the parser then looks at the right place only. The result is None for malformed bytes, since
usage must never fail a request, and for impossible counts: negative numbers, fractions, `true`, more than MOST_TOKENS.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from aiaas.openai.sse import event_data

# LLM tokens of one request: more than any engine can compute for one request, and the sum of billions of such numbers
# still fits the 63-bit integers of SQLite and Redis.
MOST_TOKENS: Final = 1_000_000_000
MOST_SECONDS: Final = 10_000_000.0  # of one request's sound: four months


class TokenUsage(msgspec.Struct, frozen=True):
    """LLM tokens of one request.

    cached_tokens  of the input, those that the engine had in its prefix cache; None if it does not report them
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None

    def without_cached(self) -> TokenUsage:
        """The same tokens, to compare with those of another request, which may have found more in the cache."""
        return TokenUsage(self.input_tokens, self.output_tokens)


def usage_of(body_or_event: bytes) -> TokenUsage | None:
    """The usage in a whole JSON body or in one whole event; None if it has none. Never raises."""
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
    """The usage in a whole answer that is not a stream, by its own top-level key only. Never raises."""
    try:
        told = _WHOLE.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if told is None else _usage(told)


def billed_usage(units: object) -> TokenUsage | None:
    """The usage in the value of `meta.billed_units` in an answer of `/v2/embed`. Never raises."""
    try:
        billed = msgspec.convert(units, _Billed)
    except msgspec.ValidationError:
        return None
    if billed.input_tokens is None and billed.image_tokens is None:
        return None
    return _usage(_Told(input_tokens=(billed.input_tokens or 0) + (billed.image_tokens or 0)))


def seconds_of_answer(body: bytes) -> float | None:
    """How long the sound of a transcription was, None if the answer does not tell. Never raises.

    `usage.seconds` in a transcription, `duration` in a detailed one, whose beginning is enough; a translation has
    neither.
    """
    begin = _DURATION.match(body)
    try:
        if begin is not None:
            seconds = float(begin[1])
        else:
            told = _HEARD.decode(body).usage
            seconds = told.seconds if told is not None else -1.0
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    return seconds if 0 <= seconds <= MOST_SECONDS else None


def is_usage_only_event(event: bytes) -> bool:
    """Whether this is the extra event that `stream_options.include_usage` adds: no choices, but usage (transcript 13).

    The gateway removes this event if the client did not ask for it.
    """
    if event.find(b'"usage"') < 0:
        return False
    answer = _answer(event)
    return answer is not None and answer.choices == [] and answer.usage is not None


def fingerprint_of(usage_event: bytes) -> bytes:
    """The `system_fingerprint` in the event that `include_usage` adds, as JSON; b"" if it has none."""
    try:
        told = bytes(_FINGERPRINT.decode(event_data(usage_event) or b"").system_fingerprint)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    return told if told.startswith(b'"') else b""


def with_fingerprint(event: bytes, fingerprint: bytes) -> bytes:
    """Add `fingerprint` at the end of an event that finishes a choice, unless the event has one.

    vLLM writes the fingerprint into its stream's last event with choices, but into the usage event if a request asks
    for usage.
    """
    end = event.rfind(b"}")
    if not fingerprint or end < 0 or event[end + 1 :].strip() or event.find(b'"system_fingerprint"') >= 0:
        return event
    return b'%b,"system_fingerprint":%b%b' % (event[:end], fingerprint, event[end:])


_NONE: Final = msgspec.Raw(b"null")


class _Told(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_tokens_details: msgspec.Raw = _NONE
    input_tokens_details: msgspec.Raw = _NONE


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Billed(msgspec.Struct):
    input_tokens: int | None = None
    image_tokens: int | None = None


class _Seconds(msgspec.Struct):
    seconds: float = -1.0


class _Heard(msgspec.Struct):
    usage: _Seconds | None = None


class _Inner(msgspec.Struct):
    usage: _Told | None = None


class _Answer(msgspec.Struct):
    usage: _Told | None = None
    choices: list[msgspec.Raw] | None = None
    response: _Inner | None = None
    message: _Inner | None = None


class _Last(msgspec.Struct):
    system_fingerprint: msgspec.Raw = msgspec.Raw(b"")


_HEARD: Final[msgspec.json.Decoder[_Heard]] = msgspec.json.Decoder(_Heard)
# vLLM writes `duration` first, and lists of megabytes behind it.
_DURATION: Final = re.compile(rb'\s*\{\s*"duration"\s*:\s*([0-9]{1,9}(?:\.[0-9]{1,20})?)')
_FINGERPRINT: Final[msgspec.json.Decoder[_Last]] = msgspec.json.Decoder(_Last)
_DETAILS: Final[msgspec.json.Decoder[_Details | None]] = msgspec.json.Decoder(_Details | None)
_WHOLE: Final[msgspec.json.Decoder[_Inner]] = msgspec.json.Decoder(_Inner)
_ANSWER: Final[msgspec.json.Decoder[_Answer]] = msgspec.json.Decoder(_Answer)


def _answer(body_or_event: bytes) -> _Answer | None:
    data = body_or_event if body_or_event[:1] == b"{" else event_data(body_or_event)
    try:
        return _ANSWER.decode(data or body_or_event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _usage(told: _Told) -> TokenUsage | None:
    taken = told.prompt_tokens
    if told.input_tokens is not None:
        taken = told.input_tokens + (told.cache_read_input_tokens or 0) + (told.cache_creation_input_tokens or 0)
    given = told.completion_tokens if told.output_tokens is None else told.output_tokens
    if given is None and taken is not None and told.total_tokens is not None:
        given = told.total_tokens - taken
    if taken is None or not 0 <= taken <= MOST_TOKENS or not 0 <= (given or 0) <= MOST_TOKENS:
        return None
    return TokenUsage(taken, given or 0, _cached(told))


def _cached(told: _Told) -> int | None:
    cached = told.cache_read_input_tokens
    details = told.prompt_tokens_details if told.input_tokens is None else told.input_tokens_details
    if len(details) > len(_NONE):
        try:
            read = _DETAILS.decode(details)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        cached = None if read is None else read.cached_tokens
    return cached if cached is None or 0 <= cached <= MOST_TOKENS else None
