"""Read the events of a stream, path by path: which events carry output, which end the stream, and how much text.

An output event adds text, reasoning or a part of a tool call to the answer. Each path has a mark that occurs once in
each ordinary output event and in no other event, so that an ordinary read of a stream costs two byte counts and no
parsing. An output event that finishes a choice is not ordinary:

    path                    an output event has            its mark                 a whole stream has
    /v1/chat/completions    "delta":                       "finish_reason":null     a finish_reason for every choice
    /v1/completions         "text":"                       "finish_reason":null     a finish_reason for every choice
    /v1/responses           a line `event: ... .delta`     that line                response.completed, .incomplete,
                                                                                    .failed or .cancelled
    /v1/messages            `event: content_block_delta`   that line                message_stop
    /v1/audio/...           "delta":                       its end, `"}}]}`         [DONE]

A transcription has a finish_reason for each half minute of sound, and an event before it has none at all.

On every path `[DONE]` or an error event of the server also ends a stream. A stream without any of these ends was cut,
however cleanly its HTTP body ended. Quotes and line breaks inside a JSON string are always escaped, so a model that
writes these words cannot produce a mark or an end.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from aiaas.openai import paths
from aiaas.openai.sse import event_data


class StreamForm(msgspec.Struct, frozen=True):
    """How to read the streams of one path.

    mark    occurs in each ordinary output event, and in no other event, as vLLM writes them
    output  matches each output event, whatever the server's JSON spacing and whether or not it names its events
    end     matches the event that ends a whole stream; None if finish reasons end it
    """

    mark: bytes
    output: re.Pattern[bytes]
    end: re.Pattern[bytes] | None = None


_UNFINISHED: Final = b'"finish_reason":null'
_NEVER: Final = re.compile(rb"(?!)")
_SOUND: Final = StreamForm(b'"}}]}', re.compile(rb'"delta"\s*:'), _NEVER)
_FORMS: Final = {
    paths.CHAT: StreamForm(_UNFINISHED, re.compile(rb'"delta"\s*:')),
    paths.COMPLETIONS: StreamForm(_UNFINISHED, re.compile(rb'"text"\s*:\s*"')),
    paths.RESPONSES: StreamForm(
        b".delta\n",
        re.compile(rb'"type"\s*:\s*"response\.[a-z_.]+\.delta"'),
        re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed|cancelled)"'),
    ),
    paths.MESSAGES: StreamForm(
        b"event: content_block_delta\n",
        re.compile(rb'"type"\s*:\s*"content_block_delta"'),
        re.compile(rb'"type"\s*:\s*"message_stop"'),
    ),
    paths.TRANSCRIPTIONS: _SOUND,
    paths.TRANSLATIONS: _SOUND,
}
# An engine that shuts down may end its streams so, cleanly and with tokens missing (docs/vllm/README.md, SIGTERM).
_ABORT: Final = re.compile(rb'"finish_reason"\s*:\s*"abort"')
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_NAMED_ERROR: Final = re.compile(rb"event: ?error\s")
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d+)')


def form_of(path: str) -> StreamForm:
    """How to read streams of `path`. Paths that do not generate tokens have no streams; they get the form of chat."""
    return _FORMS.get(path, _FORMS[paths.CHAT])


def ends_stream(event: bytes, form: StreamForm) -> bool:
    """Whether this event ends the stream: the path's last event, `[DONE]`, or a named error."""
    if form.end is not None and form.end.search(event) is not None:
        return True
    if _NAMED_ERROR.match(event) is not None:
        return True
    data = event_data(event)
    return data is not None and data.strip() == b"[DONE]"


def finished_choices(events: bytes) -> int:
    """The number of choices that these chat or completion events finish."""
    return len(_FINISH.findall(events))


def aborts(events: bytes) -> bool:
    """Whether the engine gave up a choice in these chat or completion events."""
    return b'"abort"' in events and _ABORT.search(events) is not None


def next_number(events: bytes) -> int:
    """The next `sequence_number` after these events of a `/v1/responses` stream."""
    numbers = _NUMBER.findall(events)
    return int(numbers[-1]) + 1 if numbers and len(numbers[-1]) < 10 else 0


def text_size(event: bytes) -> int:
    """The number of characters of text, reasoning or tool call that an event adds to the answer.

    Never raises. 0 for a chat's first event (`"role":"assistant","content":""`) and for the frame of a message.
    """
    data = event_data(event)
    try:
        read = _EVENT.decode(data or b"")
        if isinstance(read.choices, list):
            return sum(_choice_size(choice) for choice in read.choices if isinstance(choice, dict))
        if isinstance(read.type, str) and read.type.endswith(("content_block_delta", ".delta")):
            return _size(read.delta, ("type", "signature"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return 0


class _Event(msgspec.Struct):
    type: Any = None
    delta: Any = None
    choices: Any = None


_EVENT: Final[msgspec.json.Decoder[_Event]] = msgspec.json.Decoder(_Event)


def _choice_size(choice: dict[str, Any]) -> int:
    return _size(choice.get("text")) + _size(choice.get("delta"), ("role",))


def _size(value: Any, besides: tuple[str, ...] = ()) -> int:
    """The number of characters of all texts in `value`, without ids, types and the fields named in `besides`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_size(item, _FRAME) for item in value)
    if isinstance(value, dict):
        return sum(_size(item, _FRAME) for name, item in value.items() if name not in besides)
    return 0


_FRAME: Final = ("id", "type", "index")
