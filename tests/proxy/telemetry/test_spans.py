"""aiaas.proxy.telemetry.spans: a request's spans are what OTLP's own messages can read, and name what happened."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from aiaas.plan.model import EndpointPlan
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.telemetry.spans import encoded_spans, envelope, is_failed, spans_of
from aiaas.proxy.telemetry.trace import Trace

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
ZERO = 1_795_418_168.25  # POSIX seconds
CHAT = "/v1/chat/completions"


def record_of(**facts: Any) -> Record:
    """A whole answer from vLLM after 2 s; it arrived at 100 s."""
    known: dict[str, Any] = {
        "user": "alice", "key_id": "k1", "model": "alias", "backend": "vllm", "status": 200, "stream": True,
        "ttft": 0.5, "input_tokens": 42, "output_tokens": 26, "cached_tokens": 16, "priority_class": "default",
        "ended_by": "upstream",
    }  # fmt: skip
    return Record("req-1", CHAT, 100.0, "192.0.2.1", **known | facts)


def trace_of(*, parent_id: str | None = None, state: str = "") -> Trace:
    """A sampled trace whose present attempt began 0.1 s after the request's arrival."""
    endpoint = EndpointPlan("http://v:8000", "v", 8000, False, "", {})
    return Trace(TRACE, parent_id, state, True, "a" * 16, "", began=100.1, endpoint=endpoint, model="m")


def parsed(record: Record, trace: Trace, duration: float = 2.0) -> ExportTraceServiceRequest:
    """The export request as a collector reads it."""
    before, after = envelope({"service.name": "aiaas", "process.pid": 7}, "1.2.3")
    body = before + encoded_spans(spans_of(record, trace, duration, ZERO, "http")) + after
    message = ExportTraceServiceRequest()
    json_format.Parse(body, message, ignore_unknown_fields=False)
    return message


def spans_in(message: ExportTraceServiceRequest) -> list[Span]:
    """Its spans."""
    (resource,) = message.resource_spans
    (scope,) = resource.scope_spans
    return list(scope.spans)


def attributes_of(span: Span) -> dict[str, Any]:
    """Its attributes as Python values."""
    return {one.key: _plain(one.value) for one in span.attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    return getattr(value, kind)


def hexadecimal(value: bytes) -> str:
    """An id as it was written: `json_format` has taken its digits for base64."""
    return base64.b64encode(value).decode()


def test_an_export_request_is_read_by_otlps_own_messages() -> None:
    """Every field is one of OTLP's, with its type: enums, 64-bit integers, nested values, the resource."""
    message = parsed(record_of(), trace_of())
    (resource,) = message.resource_spans
    assert {one.key: _plain(one.value) for one in resource.resource.attributes} == {
        "service.name": "aiaas",
        "process.pid": 7,
    }
    (scope,) = resource.scope_spans
    assert (scope.scope.name, scope.scope.version) == ("aiaas", "1.2.3")
    request, attempt = spans_in(message)
    assert (request.kind, attempt.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert hexadecimal(request.trace_id) == hexadecimal(attempt.trace_id) == TRACE
    assert hexadecimal(attempt.parent_span_id) == hexadecimal(request.span_id)
    assert hexadecimal(attempt.span_id) == "a" * 16
    assert not request.parent_span_id
    assert request.end_time_unix_nano - request.start_time_unix_nano == 2_000_000_000
    assert request.start_time_unix_nano == int((ZERO + 100.0) * 1e9)
    assert request.start_time_unix_nano < attempt.start_time_unix_nano < attempt.end_time_unix_nano


def test_the_request_says_whose_it_was_and_how_it_ended() -> None:
    """In the words of the conventions for HTTP; null facts are left out."""
    request, _ = spans_in(parsed(record_of(sent=100, request_bytes=50), trace_of()))
    assert request.name == f"POST {CHAT}"
    assert attributes_of(request) == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "http.request.body.size": 50,
        "http.response.body.size": 100,
        "url.path": CHAT,
        "url.scheme": "http",
        "client.address": "192.0.2.1",
        "aiaas.request_id": "req-1",
        "aiaas.user": "alice",
        "aiaas.key_id": "k1",
        "aiaas.model": "alias",
        "aiaas.class": "default",
        "aiaas.ended_by": "upstream",
        "aiaas.retries": 0,
    }
    assert request.status.code == Status.STATUS_CODE_UNSET


def test_an_attempt_is_a_genai_client_span() -> None:
    """Operation, provider, model, tokens and the first token, as the conventions for GenAI name them."""
    _, attempt = spans_in(parsed(record_of(), trace_of()))
    assert attempt.name == "chat m"
    attributes = attributes_of(attempt)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") == pytest.approx(0.4)
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 42,
        "gen_ai.usage.output_tokens": 26,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "server.address": "v",
        "server.port": 8000,
        "aiaas.backend": "vllm",
        "http.response.status_code": 200,
    }
    (event,) = attempt.events
    assert (event.name, event.time_unix_nano) == ("first_token", int((ZERO + 100.5) * 1e9))


def test_a_clients_context_is_the_parent() -> None:
    """With its tracestate on every span."""
    request, attempt = spans_in(parsed(record_of(), trace_of(parent_id=PARENT, state="a=1")))
    assert hexadecimal(request.parent_span_id) == PARENT
    assert attempt.parent_span_id == request.span_id
    assert (request.trace_state, attempt.trace_state) == ("a=1", "a=1")


def test_waits_and_attempts_are_children_in_their_order() -> None:
    """A failed attempt has its error and its end; only the last one has the tokens."""
    trace = trace_of()
    trace.attempt_failed("vllm", 503, "503", 100.3)
    trace.began = 100.4
    trace.waits = ((100.0, 0.05),)
    request, queue, first, second = spans_in(parsed(record_of(retries=1, queue_position=3), trace))
    assert {one.parent_span_id for one in (queue, first, second)} == {request.span_id}
    assert (queue.name, queue.kind) == ("queue", Span.SPAN_KIND_INTERNAL)
    assert attributes_of(queue) == {"aiaas.queue.position": 3, "aiaas.class": "default"}
    assert (first.status.code, second.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    assert attributes_of(first)["http.response.status_code"] == 503
    assert attributes_of(first)["error.type"] == "503"
    assert "gen_ai.usage.input_tokens" not in attributes_of(first)
    assert attributes_of(second)["http.request.resend_count"] == 1
    assert first.end_time_unix_nano == int((ZERO + 100.3) * 1e9)
    assert second.end_time_unix_nano == request.end_time_unix_nano


def test_estimated_tokens_are_left_out() -> None:
    """The conventions mean what the model reported."""
    _, attempt = spans_in(parsed(record_of(estimated=True), trace_of()))
    assert "gen_ai.usage.output_tokens" not in attributes_of(attempt)


@pytest.mark.parametrize(
    ("facts", "failed"),
    [
        pytest.param({}, False, id="a whole answer"),
        pytest.param({"status": 502, "error_code": "upstream_error"}, True, id="no answer"),
        pytest.param({"error_code": "upstream_error"}, True, id="a stream that broke off"),
        pytest.param({"error_code": "draining", "ended_by": "gateway"}, True, id="cut by draining"),
        pytest.param({"error_code": "client_left", "ended_by": "client"}, False, id="the client left"),
        pytest.param({"status": 499, "error_code": "client_left", "ended_by": "client"}, False, id="left before"),
        pytest.param({"status": 400}, False, id="the client's own error"),
        pytest.param({"status": 429, "error_code": "rate_limit_exceeded"}, False, id="a limit"),
    ],
)
def test_a_request_failed_if_the_servers_failed_it(facts: dict[str, Any], failed: bool) -> None:
    """Never by its client's fault: a client could have everything exported."""
    record = record_of(**facts)
    assert is_failed(record) is failed
    request, _ = spans_in(parsed(record, trace_of()))
    assert (request.status.code == Status.STATUS_CODE_ERROR) is failed
    assert ("error.type" in attributes_of(request)) is failed


@pytest.mark.parametrize(
    ("path", "operation"),
    [("/v1/messages", "chat"), ("/v1/completions", "text_completion"), ("/v1/rerank", "rerank")],
)
def test_a_path_has_its_operation(path: str, operation: str) -> None:
    """The conventions' word where they have one."""
    record = record_of()
    record.path = path
    _, attempt = spans_in(parsed(record, trace_of()))
    assert attempt.name == f"{operation} m"
