"""Refusals, to the letter: a table of requests and the exact answers. See `wire_cases` for what it is part of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.e2e.wire_client import (
    CHAT,
    COMPLETIONS,
    HELLO,
    JSON_HEADERS,
    MESSAGES,
    RESPONSES,
    Target,
    Wire,
    chat,
    completion,
    fill,
    message,
    same_order,
)


@dataclass(frozen=True)
class Refusal:
    """A request and the answer that refuses it; {model}, {max} and {max+1} stand for the target's."""

    id: str
    body: Any
    status: int
    expected: dict[str, Any]
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    header_names: tuple[str, ...] = tuple(JSON_HEADERS)


def _error(message: str, param: str | None, kind: str = "BadRequestError", code: int = 400) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _invalid(param: str | None, *problems: str) -> dict[str, Any]:
    head = f"{len(problems)} validation error{'' if len(problems) == 1 else 's'}:"
    return _error("\n  ".join([head, *problems]), param, "Bad Request")


def _anthropic(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


_NO_SUCH_MODEL = "The model `nope` does not exist. Valid aliases: {model}."
_UNKNOWN_MODEL = _error(_NO_SUCH_MODEL, "model", "NotFoundError", 404)
_MEDIA_TYPE = _invalid(None, "Unsupported Media Type: Only 'application/json' is allowed")
_NO_CONVERSATION = "Cannot apply chat template to an empty conversation. Provide at least one message."
_STREAM_OPTIONS = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
_NO_PROMPT = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
_OVERFLOW = (
    "This model's maximum context length is {max} tokens. However, your prompt contains at least {max+1} input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value={max+1})"
)
_MISSING = "{{'type': 'missing', 'loc': '{0}', 'msg': 'Field required', 'input': '{1}'}}"
_NO_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_CONTINUED = {"continue_final_message": True}
_OPENED = [*HELLO, {"role": "assistant", "content": "Hello"}]
_SILENT = [*HELLO, {"role": "assistant", "content": None}]
_BOTH = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
_NOT_COMPATIBLE = (
    "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you want the "
    "model to continue the final message, and add_generation_prompt when you want to add a header that will prompt it "
    "to start a new assistant message instead."
)
_NO_TEXT = "continue_final_message is set but we could not find any text to continue in the final message!"
_LONG = [{"role": "user", "content": "word " * 9000}]


def _too_many(name: str) -> str:
    return (
        f"{name}=99999 cannot be greater than max_model_len={{max}}. Please request fewer output tokens. "
        f"(parameter={name}, value=99999)"
    )


def _decode_problem(position: int, reason: str) -> str:
    return (
        f"{{'type': 'json_invalid', 'loc': 'body.{position}', 'msg': 'JSON decode error', "
        f"'input': '<dict of 0 items>', 'ctx': {{'error': '{reason}'}}}}"
    )


def _type_problem(kind: str, loc: str, msg: str, given: str) -> str:
    return f"{{'type': '{kind}', 'loc': 'body.{loc}', 'msg': '{msg}', 'input': '{given}'}}"


_NOT_A_DICT = (
    "{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract "
    "fields from', 'input': '<list of 0 items>'}"
)

REFUSALS = (
    Refusal("bad JSON", b'{"model": ', 400, _invalid("body.10", _decode_problem(10, "Expecting value"))),
    Refusal("no body", b"", 400, _invalid("body", _MISSING.format("body", "None"))),
    Refusal("null as body", b"null", 400, _invalid("body", _MISSING.format("body", "None"))),
    Refusal("an array as body", b"[]", 400, _invalid("body", _NOT_A_DICT)),
    Refusal(
        "nested 10,000 deep", b"[" * 10_000 + b"]" * 10_000, 400, {"detail": "There was an error parsing the body"}
    ),
    Refusal("not UTF-8", b'{"a":"\xff"}', 400, {"detail": "There was an error parsing the body"}),
    Refusal("wrong content type", chat(), 400, _MEDIA_TYPE, headers={"Content-Type": "text/plain"}),
    Refusal("no content type", chat(), 400, _MEDIA_TYPE, headers={"Content-Type": ""}),
    Refusal("no messages", {}, 400, _invalid("body.messages", _MISSING.format("body.messages", "<dict of 0 items>"))),
    Refusal("empty messages", {"messages": []}, 400, _error(_NO_CONVERSATION, None)),
    Refusal(
        "three wrong types",
        {"model": 5, "messages": "hi", "max_tokens": "abc"},
        400,
        _invalid(
            "body.messages",
            _type_problem("list_type", "messages", "Input should be a valid list", "hi"),
            _type_problem("string_type", "model", "Input should be a valid string", "5"),
            _type_problem(
                "int_parsing",
                "max_tokens",
                "Input should be a valid integer, unable to parse string as an integer",
                "abc",
            ),
        ),
    ),
    Refusal(
        "stream is not a boolean",
        chat(stream="maybe"),
        400,
        _invalid(
            "body.stream",
            _type_problem(
                "bool_parsing", "stream", "Input should be a valid boolean, unable to interpret input", "maybe"
            ),
        ),
    ),
    Refusal(
        "stop is a number",
        chat(stop=5),
        400,
        _invalid(
            "body.stop",
            _type_problem("string_type", "stop", "Input should be a valid string", "5"),
            _type_problem("list_type", "stop", "Input should be a valid list", "5"),
        ),
    ),
    Refusal(
        "priority is not a number",
        chat(priority="high"),
        400,
        _invalid(
            "body.priority",
            _type_problem(
                "int_parsing",
                "priority",
                "Input should be a valid integer, unable to parse string as an integer",
                "high",
            ),
        ),
    ),
    Refusal("unknown model", chat(model="nope"), 404, _UNKNOWN_MODEL),
    Refusal("unknown model, streamed", chat(model="nope", stream=True), 404, _UNKNOWN_MODEL),
    Refusal("unknown model before a bad value", chat(model="nope", max_tokens=0, tools=[_TOOL]), 404, _UNKNOWN_MODEL),
    Refusal(
        "stream options without stream",
        chat(stream_options={"include_usage": True}),
        400,
        _error(_STREAM_OPTIONS, "stream_options"),
    ),
    Refusal(
        "tools without a parser",
        chat(tools=[_TOOL]),
        400,
        _error(_NO_PARSER, None),
    ),
    Refusal(
        "an image",
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        400,
        _error("{model} is not a multimodal model", None),
    ),
    Refusal("prompt over the context", chat(messages=_LONG), 400, _error(_OVERFLOW, "input_tokens")),
    Refusal(
        "prompt over the context, streamed", chat(messages=_LONG, stream=True), 400, _error(_OVERFLOW, "input_tokens")
    ),
    Refusal("max_tokens over the context", chat(max_tokens=99999), 400, _error(_too_many("max_tokens"), "max_tokens")),
    Refusal(
        "max_completion_tokens over the context",
        chat(max_completion_tokens=99999),
        400,
        _error(_too_many("max_completion_tokens"), "max_completion_tokens"),
    ),
    Refusal(
        "max_tokens 0",
        chat(max_tokens=0),
        400,
        _error("max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"),
    ),
    Refusal(
        "negative temperature",
        chat(temperature=-1),
        400,
        _error("temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)", "temperature"),
    ),
    Refusal(
        "temperature over 2",
        chat(temperature=3),
        400,
        _error("temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)", "temperature"),
    ),
    Refusal(
        "top_p 0", chat(top_p=0), 400, _error("top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)", "top_p")
    ),
    Refusal("n 0", chat(n=0), 400, _error("n must be at least 1, got 0.", None)),
    Refusal("n 2 without chance", chat(n=2), 400, _error("n must be 1 when using greedy sampling, got 2.", None)),
    Refusal("an empty stop string", chat(stop=[""]), 400, _error("stop cannot contain an empty string.", None)),
    Refusal(
        "min_tokens over max_tokens",
        chat(min_tokens=9),
        400,
        _error("min_tokens must be less than or equal to max_tokens=5, got 9.", None),
    ),
    Refusal("completion without a prompt", {}, 400, _error(_NO_PROMPT, "prompt"), path=COMPLETIONS),
    Refusal("completion, unknown model", completion(model="nope"), 404, _UNKNOWN_MODEL, path=COMPLETIONS),
    Refusal(
        "completion, no prompts",
        completion(prompt=[]),
        400,
        _error("You must pass at least one prompt", None),
        path=COMPLETIONS,
    ),
    Refusal("response, unknown model", {"input": "a", "model": "nope"}, 404, _UNKNOWN_MODEL, path=RESPONSES),
    Refusal(
        "response that is not stored",
        None,
        404,
        _error("Response with id 'resp_x' not found.", "response_id", "invalid_request_error", 404),
        path=f"{RESPONSES}/resp_x",
        method="GET",
    ),
    Refusal(
        "message, unknown model", message(model="nope"), 404, _anthropic("NotFoundError", _NO_SUCH_MODEL), path=MESSAGES
    ),
    Refusal(
        "message, tools without a parser",
        message(tools=[{"name": "f", "input_schema": {"type": "object", "properties": {}}}]),
        400,
        _anthropic("BadRequestError", _NO_PARSER),
        path=MESSAGES,
    ),
    Refusal(
        "message without max_tokens",
        {"model": "m", "messages": HELLO},
        400,
        _invalid("body.max_tokens", _MISSING.format("body.max_tokens", "<dict of 2 items>")),
        path=MESSAGES,
    ),
    Refusal(
        "message, max_tokens over the context",
        message(max_tokens=99999),
        400,
        _anthropic("BadRequestError", _too_many("max_completion_tokens")),
        path=MESSAGES,
    ),
    Refusal(
        "continued and opened",
        chat(messages=_OPENED, add_generation_prompt=True, **_CONTINUED),
        400,
        _error(_BOTH, None),
    ),
    Refusal(
        "continued and opened by default",
        chat(messages=_OPENED, stream=True, **_CONTINUED),
        400,
        _error(_NOT_COMPATIBLE, None),
    ),
    Refusal(
        "continued without a text",
        chat(messages=_SILENT, add_generation_prompt=False, **_CONTINUED),
        400,
        _error(_NO_TEXT, None),
    ),
    Refusal(
        "continued, not a boolean",
        chat(messages=_OPENED, continue_final_message="maybe"),
        400,
        _invalid(
            "body.continue_final_message",
            _type_problem(
                "bool_parsing",
                "continue_final_message",
                "Input should be a valid boolean, unable to interpret input",
                "maybe",
            ),
        ),
    ),
    Refusal(
        "tokenize, continued and opened",
        {"messages": _OPENED, "add_generation_prompt": True, **_CONTINUED},
        400,
        _error(_BOTH, None),
        path="/tokenize",
    ),
    Refusal(
        "tokenize, continued and opened by default",
        {"messages": _OPENED, **_CONTINUED},
        400,
        _error(_NOT_COMPATIBLE, None),
        path="/tokenize",
    ),
    Refusal(
        "tokenize, continued without a text",
        {"messages": _SILENT, "add_generation_prompt": False, **_CONTINUED},
        400,
        _error(_NO_TEXT, None),
        path="/tokenize",
    ),
    Refusal(
        "tokenize, no messages",
        {"messages": []},
        400,
        _error(_NO_CONVERSATION, None),
        path="/tokenize",
    ),
    Refusal("tokenize, unknown model", {"prompt": "a", "model": "nope"}, 404, _UNKNOWN_MODEL, path="/tokenize"),
    Refusal("no such path", None, 404, {"detail": "Not Found"}, path="/v1/nope", method="GET"),
    Refusal("a model by its id", None, 404, {"detail": "Not Found"}, path="/v1/models/{model}", method="GET"),
    Refusal("embeddings of a text model", {"input": "x"}, 404, {"detail": "Not Found"}, path="/v1/embeddings"),
    Refusal(
        "GET where POST is meant",
        None,
        405,
        {"detail": "Method Not Allowed"},
        method="GET",
        header_names=("date", "server", "allow", "content-length", "content-type", "vary"),
    ),
    Refusal(
        "POST where GET is meant",
        {},
        405,
        {"detail": "Method Not Allowed"},
        path="/v1/models",
        header_names=("date", "server", "allow", "content-length", "content-type", "vary"),
    ),
)


def check_refusal(target: Target, case: Refusal) -> None:
    """The refusal is exact, and the connection stays open for the next request."""
    with Wire(target) as wire:
        wire.send(case.method, fill(case.path, target), fill(case.body, target), case.headers)
        answer = wire.receive()
        assert (answer.status, answer.json()) == (case.status, fill(case.expected, target))
        assert same_order(answer.json(), fill(case.expected, target))
        assert answer.header_names == list(case.header_names)
        assert answer.header("content-type") == "application/json"
        wire.send("GET", "/health")
        assert wire.receive().status == 200
