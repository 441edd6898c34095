"""Errors on the wire: write our own in the shape that the path's SDK reads, and recognise vLLM's dying engine.

vLLM writes `error.code` as the integer status and reports a dead or draining engine as an ordinary 500. Only the
message distinguishes it from any other 500 (transcripts 132, 135, 140), so we match these two messages at the beginning
of the body's `error.message`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aiaas.errors import ApiError
from aiaas.openai import paths
from aiaas.openai.sse import event_data

# vLLM 0.32: the message of EngineDeadError, and asyncio's after SIGTERM has shut down its executor.
DYING_ENGINE: Final = (
    "EngineCore encountered an issue",
    "cannot schedule new futures after shutdown",
)


# Bytes: `{"error"` or `{"type":"error","error"` begin an error event, so a long event is not searched to its end.
_ERROR_WITHIN: Final = 48
# Bytes of FastAPI's answer for an unknown path, with room for spaces.
_UNKNOWN_WITHIN: Final = 64

_ENCODER: Final = msgspec.json.Encoder()


# Anthropic's error types by status (platform.claude.com/docs/en/api/errors). Any other 4xx gets the type of 400, any
# other 5xx that of 500.
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
    """The error's body in the shape that the official SDK of `path` reads.

    `{"error": {"message", "type", "param", "code"}}` with OpenAI's types; on Anthropic's paths
    `{"type": "error", "error": {...}}` with Anthropic's types. `code` is one of docs/errors.md in both shapes.
    """
    detail = _detail(error)
    if path not in paths.ANTHROPIC:
        return _ENCODER.encode({"error": detail})
    usual = _ANTHROPIC_TYPES[500 if error.status >= 500 else 400]
    return _ENCODER.encode({"type": "error", "error": detail | {"type": _ANTHROPIC_TYPES.get(error.status, usual)}})


def error_event(error: ApiError, path: str, number: int = 0) -> bytes:
    """One whole event that ends a stream with an error. On `/v1/responses`, `number` is its `sequence_number`.

    The OpenAI SDK raises on `data: {"error"`, the Anthropic SDK on `event: error`, whose data has a `type` of its own.
    """
    # The OpenAI SDK returns the responses API's documented error event as a value, and a program may go on as if the
    # answer were whole. With an `error` field in the event, the SDK raises.
    if path == paths.RESPONSES:
        named = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": number}
        return b"event: error\ndata: " + _ENCODER.encode({"type": "error", "error": _detail(error), **named}) + b"\n\n"
    name = b"event: error\n" if path in paths.ANTHROPIC else b""
    return name + b"data: " + error_body(error, path) + b"\n\n"


def _detail(error: ApiError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def engine_died(body: bytes) -> bool:
    """Whether `body`, of a 500 from vLLM, reports a dead or draining engine, so that another replica should be tried.

    Never raises. A message that only quotes those words later in its text does not count.
    """
    error = _error_in(body)
    return error is not None and isinstance(error.message, str) and error.message.startswith(DYING_ENGINE)


def is_unknown_path(status: int, body: bytes) -> bool:
    """Whether an engine's answer says that it does not have the path, and not that it does not know the model.

    An engine without a pooling model has no `/v1/embeddings`, for example, and FastAPI answers `{"detail":"Not Found"}`
    there (transcript 30). vLLM's 404 for a model has an `error` (transcript 44). Never raises.
    """
    if status != 404 or len(body) > _UNKNOWN_WITHIN:
        return False
    try:
        return bool(_DETAIL.decode(body).detail == "Not Found")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def is_json_object(body: bytes) -> bool:
    """Whether an error's body is a JSON object, like all of vLLM's (transcripts 40 to 77, 115, 135). Never raises."""
    try:
        _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def is_error_event(event: bytes) -> int | None:
    """The code of an error event inside a stream (transcript 132); None if `event` is not an error event.

    500 if the error has no integer code. Never raises; costs one comparison for an ordinary event.
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


class _Detail(msgspec.Struct, forbid_unknown_fields=True):
    detail: Any = None


class _Answer(msgspec.Struct):
    """vLLM's shapes `{"error": {...}}` and `{"error": "text"}`; its third, `{"detail": ...}`, gives error None."""

    error: _Error | str | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_DETAIL: Final = msgspec.json.Decoder(_Detail)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _error_in(body: bytes) -> _Error | None:
    try:
        error = _ANSWER.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _Error(error) if isinstance(error, str) else error
