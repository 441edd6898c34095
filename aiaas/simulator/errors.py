"""vLLM's errors: their three shapes and their messages (transcripts 40 to 70b, 86, 100, 115, 132, 140).

    {"error": {"message", "type", "param", "code"}}   from vLLM itself; a 400 has one of two spellings of the type
    {"error": "Unauthorized"}                         from the key check
    {"detail": ...}                                   from the framework: unknown path, wrong method, unreadable body

Pure. The checks in `requests` raise `WireError`, and `app` catches it in one place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aiaas.simulator.answers import encode

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
ENGINE_BUSY = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
ENGINE_GONE = "cannot schedule new futures after shutdown"
EMPTY_CONVERSATION = "Cannot apply chat template to an empty conversation. Provide at least one message."
OPENED_AND_CONTINUED = (
    "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you want the "
    "model to continue the final message, and add_generation_prompt when you want to add a header that will prompt it "
    "to start a new assistant message instead."
)
NESTED_TOO_DEEP = "maximum recursion depth exceeded while decoding a JSON array from a unicode string"

_SHOWN = 10  # problems of one body that vLLM prints
_BRANCH = re.compile(r"str|int|(list|dict)\[.*\]")  # pydantic's names for a union's branches; not a field's name


class WireError(Exception):
    """An error answer.

    varies     the answer has `vary: Origin`, as most errors do
    unhandled  an exception that vLLM does not handle: vLLM answers, logs, and closes without `connection: close`
    """

    def __init__(
        self,
        status: int,
        body: dict[str, Any],
        *,
        allow: str | None = None,
        varies: bool = True,
        unhandled: bool = False,
    ) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.content = body
        self.body = encode(body)
        self.allow = allow
        self.varies = varies and not unhandled  # vLLM answers unhandled exceptions outside the CORS layer
        self.unhandled = unhandled


def error_object(message: str, kind: str, param: str | None, code: int) -> dict[str, Any]:
    """Build the OpenAI-like shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(message: str, param: str | None = None, value: object = None) -> WireError:
    """A value that vLLM itself refuses; the message ends with the param and the value, if they are given (50, 15)."""
    if param is not None:
        tail = "" if value is None else f", value={value}"
        message = f"{message} (parameter={param}{tail})"
    return WireError(400, error_object(message, "BadRequestError", param, 400))


def invalid(problems: Sequence[dict[str, Any]]) -> WireError:
    """A body of the wrong form: pydantic's problems, as vLLM prints them (40 to 60)."""
    shown = []
    for problem in problems[:_SHOWN]:
        entry = {
            "type": problem["type"],
            "loc": ".".join(str(part) for part in problem["loc"] if not _BRANCH.fullmatch(str(part))),
            "msg": problem["msg"],
            "input": _brief(problem["input"]),
        }
        if "ctx" in problem:
            entry["ctx"] = problem["ctx"]
        shown.append(entry)
    lines = [repr(entry) for entry in shown]
    if len(problems) > _SHOWN:
        lines.append(f"...and {len(problems) - _SHOWN} more errors")
    return _invalid(lines, shown[0]["loc"], len(problems))


def anthropic(error: WireError) -> WireError:
    """Convert an error to Anthropic's shape, for /v1/messages.

    This includes the errors of a busy, a dead and a draining engine, which that path's handler catches itself, inside
    the CORS layer. Errors raised before the handler (a wrong key) keep their shape.
    """
    inner = error.content["error"]
    if not isinstance(inner, dict):
        return error
    body = {"type": "error", "error": {"type": inner["type"], "message": inner["message"]}}
    return WireError(error.status, body)


def undecodable_invocation(reason: str) -> WireError:
    """A body at /invocations that is not JSON."""
    return WireError(400, error_object(f"JSON decode error: {reason}", "Bad Request", None, 400))


def unknown_response(response_id: str) -> WireError:
    """/v1/responses/{id}: the simulator does not store responses."""
    message = f"Response with id '{response_id}' not found."
    return WireError(404, error_object(message, "invalid_request_error", "response_id", 404))


def unsupported_media_type() -> WireError:
    """A wrong or missing content-type (43, 43b)."""
    return _invalid(["Unsupported Media Type: Only 'application/json' is allowed"], None, 1)


def _invalid(lines: Sequence[str], param: str | None, count: int) -> WireError:
    head = f"{count} validation error{'' if count == 1 else 's'}:"
    return WireError(400, error_object("\n  ".join([head, *lines]), "Bad Request", param, 400))


def _brief(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def wire_unreadable() -> WireError:
    """A body that is not text, e.g. a compressed body (86)."""
    return WireError(400, {"detail": "There was an error parsing the body"})


def unknown_model(name: str, served: Sequence[str], *, pooling: bool = False) -> WireError:
    """A model that is not served (44); a pooling vLLM has a shorter message (157)."""
    if pooling:
        return WireError(404, error_object(f"The model `{name}` does not exist.", "NotFoundError", None, 404))
    message = f"The model `{name}` does not exist. Valid aliases: {', '.join(served)}."
    return WireError(404, error_object(message, "NotFoundError", "model", 404))


def too_long(max_model_len: int) -> WireError:
    """A prompt that fills the context (54); vLLM stops counting one token past the end."""
    at_least = max_model_len + 1
    return bad_request(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
        f"{at_least} input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt.",
        "input_tokens",
        at_least,
    )


def empty_conversation() -> WireError:
    """A conversation without a message (47)."""
    return bad_request(EMPTY_CONVERSATION)


def both_openings_asked() -> WireError:
    """A request that sets `continue_final_message` and `add_generation_prompt`."""
    return bad_request("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")


def opened_and_continued() -> WireError:
    """A request that sets `continue_final_message` and leaves `add_generation_prompt` at its default, which is true."""
    return bad_request(OPENED_AND_CONTINUED)


def nothing_to_continue() -> WireError:
    """A request that sets `continue_final_message`, whose last message has no content."""
    return bad_request("continue_final_message is set but we could not find any text to continue in the final message!")


def wire_not_found() -> WireError:
    """An unknown path (66)."""
    return WireError(404, {"detail": "Not Found"})


def wire_method_not_allowed(allow: str) -> WireError:
    """A known path with a wrong method (64, 65)."""
    return WireError(405, {"detail": "Method Not Allowed"}, allow=allow)


def wire_unauthorized() -> WireError:
    """A missing or wrong key (100, 101); answered outside the CORS layer, so without `vary`."""
    return WireError(401, {"error": "Unauthorized"}, varies=False)


def engine_dead() -> WireError:
    """The engine process died (135)."""
    return WireError(500, error_object(ENGINE_DEAD, "InternalServerError", None, 500))


def stream_died_in_messages() -> str:
    """Return the message of the error event in a stream of /v1/messages whose engine died.

    vLLM translates its own chat stream there. The stream's error event is not a chunk, so pydantic rejects it, and the
    client gets pydantic's message.
    """
    fields = ("model", "choices")
    given = "input_value={'error': {'message': 'En...am': None, 'code': 500}}, input_type=dict"
    problems = [
        f"{field}\n  Field required [type=missing, {given}]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/missing"
        for field in fields
    ]
    return "\n".join((f"{len(fields)} validation errors for ChatCompletionStreamResponse", *problems))


def engine_busy() -> WireError:
    """The queue is full (115)."""
    return WireError(503, error_object(ENGINE_BUSY, "Service Unavailable", None, 503))


def engine_gone() -> WireError:
    """The engine is shutting down (139)."""
    return WireError(500, error_object(ENGINE_GONE, "InternalServerError", None, 500), unhandled=True)


def nested_too_deep() -> WireError:
    """A tool call's arguments that are nested too deep for Python's recursion limit."""
    return WireError(500, error_object(NESTED_TOO_DEEP, "InternalServerError", None, 500), unhandled=True)


def too_many() -> WireError:
    """The error of a rate limiter in front of vLLM."""
    return WireError(429, error_object("Too many requests; please slow down.", "RateLimitError", None, 429))


def told_to_fail(status: int) -> WireError:
    """An error that does not mean that the engine died (fault `error`)."""
    kind = "InternalServerError" if status >= 500 else "BadRequestError"
    return WireError(status, error_object("The simulator was told to fail.", kind, None, status))
