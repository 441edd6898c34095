"""Errors as they are on the wire, the gateway's and vLLM's."""

from __future__ import annotations

import json

import pytest

from aiaas.errors import ApiError, ClientError, LimitError, UpstreamError
from aiaas.openai import paths
from aiaas.openai.errors import (
    engine_died,
    error_body,
    error_event,
    is_error_event,
    is_json_object,
    is_unknown_path,
)

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DRAINING = "cannot schedule new futures after shutdown"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError(404, "model_not_found", "There is no such model.", param="model"), "invalid_request_error"),
        (LimitError(429, "rate_limit_exceeded", "Wait."), "rate_limit_error"),
        (UpstreamError(502, "upstream_error", 'Say "é".'), "server_error"),
    ],
)
def test_an_error_body_has_the_openai_shape(error: ApiError, kind: str) -> None:
    """All four fields, `param` null where no field is at fault."""
    expected = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    assert json.loads(error_body(error, paths.CHAT)) == {"error": expected}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_error_body_of_messages_has_the_anthropic_type(status: int, kind: str) -> None:
    """The Anthropic SDK and its users branch on `error.type`; `code` is the gateway's, as elsewhere."""
    body = json.loads(error_body(ApiError(status, "our_code", "Say why.", param="model"), paths.MESSAGES))
    detail = {"message": "Say why.", "type": kind, "param": "model", "code": "our_code"}
    assert body == {"type": "error", "error": detail}


def test_an_error_event_is_one_whole_event() -> None:
    """It begins as the OpenAI SDK expects, and closes with an empty line."""
    error = UpstreamError(504, "upstream_timeout", "The backend was silent.")
    event = error_event(error, paths.CHAT)
    assert event == b"data: " + error_body(error, paths.CHAT) + b"\n\n"
    assert b"\n" not in event[:-2]
    assert is_error_event(event) == 500


def test_an_error_event_of_messages_has_the_anthropic_shape() -> None:
    """`event: error`, and a type of its own in the data."""
    error = UpstreamError(504, "upstream_timeout", "The backend was silent.")
    name, data, *rest = error_event(error, paths.MESSAGES).split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    body = json.loads(data.removeprefix(b"data: "))
    assert body == json.loads(error_body(error, paths.MESSAGES))
    assert is_error_event(error_event(error, paths.MESSAGES)) == 500


@pytest.mark.parametrize(
    ("body", "died"),
    [
        pytest.param({"error": {"message": DEAD, "type": "InternalServerError", "code": 500}}, True, id="dead (132)"),
        pytest.param({"error": {"message": DRAINING, "code": 500}}, True, id="draining (140)"),
        pytest.param({"error": {"message": "division by zero", "code": 500}}, False, id="another 500"),
        pytest.param({"error": {"message": "no tool " + DEAD, "code": 500}}, False, id="quoted inside"),
        pytest.param({"error": {"message": None}, "x": DEAD}, False, id="elsewhere"),
        pytest.param({"error": "Unauthorized"}, False, id="a text"),
        pytest.param({"detail": "Not Found"}, False, id="detail"),
        pytest.param([], False, id="a list"),
    ],
)
def test_a_dying_engine_is_told_by_its_message(body: object, died: bool) -> None:
    """Only the two known messages, at the beginning."""
    assert engine_died(json.dumps(body).encode()) is died


@pytest.mark.parametrize(
    ("body", "is_object"), [(b"{}", True), (b' {"a": []}\n', True), (b"[]", False), (b"<p>", False), (b"", False)]
)
def test_is_json_object(body: bytes, is_object: bool) -> None:
    """As all errors of vLLM are."""
    assert is_json_object(body) is is_object


@pytest.mark.parametrize("body", [b"", b"<html>", DEAD.encode(), b"[" * 100_000, b'{"error": {"message": "\xff"}}'])
def test_unreadable_body_does_not_mean_a_dying_engine(body: bytes) -> None:
    """An unreadable body raises nothing."""
    assert engine_died(body) is False


@pytest.mark.parametrize(
    ("event", "code"),
    [
        pytest.param(
            b'data: {"error": {"message": "EngineCore", "param": null, "code": 500}}\n\n', 500, id="vLLM (132)"
        ),
        pytest.param(b'data: {"error":{"message":"bad","code":400}}\n\n', 400, id="client error"),
        pytest.param(b'data:{"error":{"message":"bad","code":503}}\r\n\r\n', 503, id="no space, CR LF"),
        pytest.param(b'event: error\ndata: {"type":"error","error":{"code":500}}\n\n', 500, id="event: error"),
        pytest.param(b'data: {"error": {"code": "overloaded"}}\n\n', 500, id="code is a text"),
        pytest.param(b'data: {"error": {"code": true}}\n\n', 500, id="code is a truth value"),
        pytest.param(b'data: {"error": "boom"}\n\n', 500, id="error is a text"),
        pytest.param(b'data: {"error": null, "choices": []}\n\n', None, id="null"),
        pytest.param(b'data: {"choices": [{"delta": {"content": "{\\"error\\": 1}"}}]}\n\n', None, id="a text"),
        pytest.param(b'data: {"a":{"error": {"code": 500}}}\n\n', None, id="nested"),
        pytest.param(b"data: [DONE]\n\n", None, id="done"),
        pytest.param(b": ping\n\n", None, id="comment"),
        pytest.param(b'data: {"error"\n\n', None, id="cut"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_an_error_inside_a_stream_is_seen(event: bytes, code: int | None) -> None:
    """Its integer code comes out, 500 where it has none; anything else is not an error."""
    assert is_error_event(event) == code


@pytest.mark.parametrize(
    ("status", "body", "unknown"),
    [
        (404, b'{"detail":"Not Found"}', True),
        (404, b' { "detail" : "Not Found" }\n', True),
        (400, b'{"detail":"Not Found"}', False),
        (404, b'{"detail":"Not Found","error":{}}', False),
        (404, b'{"detail":"Not Found"}' + b" " * 100, False),
        (404, b'{"detail":["Not Found"]}', False),
        (404, b'{"error":{"message":"Not Found"}}', False),
        (404, b'"Not Found"', False),
        (404, b"Not Found", False),
        (404, b"\xff", False),
        (404, b"", False),
    ],
)
def test_unknown_path_is_told_from_an_unknown_model(status: int, body: bytes, unknown: bool) -> None:
    """FastAPI's own 404, and nothing else."""
    assert is_unknown_path(status, body) == unknown
