"""Errors on the wire: ours in the shape that the path's SDK reads, and vLLM's as far as they tell of a dying engine.

vLLM writes `error.code` as the integer status, and calls a dead or draining engine an ordinary 500. Only its message
tells it from any other 500 (transcripts 132, 135, 140), so those two messages are matched, at the beginning of the
body's `error.message`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aiaas.errors import ApiError
from aiaas.openai import paths
from aiaas.openai.sse import event_data

# vLLM 0.32: EngineDeadError's message, and asyncio's when its executor was shut down by SIGTERM.
DYING_ENGINE: Final = (
    "EngineCore encountered an issue",
    "cannot schedule new futures after shutdown",
)


# `{"error"` or `{"type":"error","error"` stand at the very front; the whole of a long event is not searched.
_ERROR_WITHIN: Final = 48

_ENCODER: Final = msgspec.json.Encoder()


# Anthropic's error types by status (platform.claude.com/docs/en/api/errors); other 4xx and 5xx are its first and last.
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    500: "api_error",
}


def error_body(error: ApiError, path: str) -> bytes:
    """What the official SDKs read on `path`.

    `{"error": {"message", "type", "param", "code"}}`, with OpenAI's types; on Anthropic's paths
    `{"type": "error", "error": {...}}` with Anthropic's. `code` is ours on both, as docs/errors.md lists them.
    """
    detail = _detail(error)
    if path not in paths.ANTHROPIC:
        return _ENCODER.encode({"error": detail})
    usual = _ANTHROPIC_TYPES[500 if error.status >= 500 else 400]
    return _ENCODER.encode({"type": "error", "error": detail | {"type": _ANTHROPIC_TYPES.get(error.status, usual)}})


def error_event(error: ApiError, path: str, number: int = 0) -> bytes:
    """One whole event, the last of a stream already begun; of `/v1/responses` it has the `sequence_number` `number`.

    The OpenAI SDK raises on `data: {"error"`, the Anthropic one on `event: error`, whose data has a `type` of its own.
    An error event as the responses API documents it is a value to the OpenAI SDK, on which a program may go on as if
    the answer were whole; with `error` in it the SDK raises.
    """
    if path == paths.RESPONSES:
        named = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": number}
        return b"event: error\ndata: " + _ENCODER.encode({"type": "error", "error": _detail(error), **named}) + b"\n\n"
    name = b"event: error\n" if path in paths.ANTHROPIC else b""
    return name + b"data: " + error_body(error, path) + b"\n\n"


def _detail(error: ApiError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def engine_died(body: bytes) -> bool:
    """Whether `body`, of a 500 from vLLM, says that its engine is dead or draining: another replica should be tried.

    Never raises. A message that merely quotes those words further in is not taken for one.
    """
    error = _error_in(body)
    return error is not None and isinstance(error.message, str) and error.message.startswith(DYING_ENGINE)


def is_json_object(body: bytes) -> bool:
    """Whether an error's body is a JSON object, as all of vLLM's are (transcripts 40 to 77, 115, 135). Never raises."""
    try:
        _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def is_error_event(event: bytes) -> int | None:
    """The code of an error that came inside a stream (transcript 132), None where `event` is no such.

    500 where the error names no integer code. Never raises; costs one comparison for an ordinary event.
    """
    start = event.find(b"data:")
    if start < 0 or event.find(b'"error"', start, start + _ERROR_WITHIN) < 0:
        return None
    data = event_data(event)
    error = None if data is None else _error_in(data)
    if error is None:
        return None
    return error.code if type(error.code) is int else 500


class _Error(msgspec.Struct):
    message: Any = None
    code: Any = None


class _Answer(msgspec.Struct):
    """Either of vLLM's shapes, `{"error": {...}}` or `{"error": "text"}`; its third, `{"detail": ...}`, has none."""

    error: _Error | str | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _error_in(body: bytes) -> _Error | None:
    try:
        error = _ANSWER.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _Error(error) if isinstance(error, str) else error
