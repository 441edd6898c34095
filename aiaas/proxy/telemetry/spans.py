"""A finished request as spans of OTLP/JSON: the request, its waits in the queue, its attempts. Pure.

    POST /v1/chat/completions    SERVER    from the request's arrival to the end of its answer
      queue                      INTERNAL  one for each wait for a slot
      chat gpt-oss-20b           CLIENT    one for each attempt; vLLM's own spans are its children

Names follow OpenTelemetry's semantic conventions for HTTP and for GenAI where those have one; the gateway's own begin
with `aiaas.`. OTLP/JSON is protobuf's JSON with ids in hexadecimal, enums as numbers and 64-bit integers as text
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). No prompt, answer, header or key is in a span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from aiaas.openai import paths
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.telemetry.trace import FailedAttempt, Trace

SpanJson = dict[str, Any]
Value = str | int | float | bool | None

_INTERNAL: Final = 1
_SERVER: Final = 2
_CLIENT: Final = 3
_ERROR: Final = 2

# The conventions' words for inference paths; the operation of any other path is the path's last part.
_OPERATIONS: Final[Mapping[str, str]] = {
    paths.CHAT: "chat",
    paths.RESPONSES: "chat",
    paths.MESSAGES: "chat",
    paths.COMPLETIONS: "text_completion",
    paths.EMBEDDINGS: "embeddings",
    paths.V2_EMBED: "embeddings",
}
FIRST_TOKEN: Final = "first_token"


def is_failed(record: Record) -> bool:
    """Whether the model server or the gateway failed a request. A client's own error, limits or leaving do not count:
    anybody could have those exported."""
    if record.status >= 500:
        return True
    return record.status < 400 and record.error_code is not None and record.ended_by != "client"


def spans_of(record: Record, trace: Trace, duration: float, zero: float, scheme: str) -> list[SpanJson]:
    """The spans of a request that took `duration` seconds.

    zero    POSIX seconds at which `time.monotonic` was 0
    scheme  of the URL that the client used
    """
    own_id = trace.request_id()
    ended = record.started + duration

    def span(
        span_id: str, name: str, kind: int, times: tuple[float, float], attributes: Mapping[str, Value]
    ) -> SpanJson:
        made: SpanJson = {
            "traceId": trace.trace_id,
            "spanId": span_id,
            "name": name,
            "kind": kind,
            "startTimeUnixNano": _nanoseconds(zero + times[0]),
            "endTimeUnixNano": _nanoseconds(zero + times[1]),
            "attributes": _attributes(attributes),
        }
        if span_id != own_id:
            made["parentSpanId"] = own_id
        elif trace.parent_id is not None:
            made["parentSpanId"] = trace.parent_id
        if trace.state:
            made["traceState"] = trace.state
        if attributes.get("error.type") is not None:
            made["status"] = {"code": _ERROR}
        return made

    spans = [span(own_id, f"POST {record.path}", _SERVER, (record.started, ended), _of_request(record, scheme))]
    for number, (began, waited) in enumerate(trace.waits):
        waiting = {"aiaas.queue.position": record.queue_position or None, "aiaas.class": record.priority_class}
        spans.append(span(trace.wait_id(number), "queue", _INTERNAL, (began, began + waited), waiting))
    operation = _OPERATIONS.get(record.path) or record.path.rpartition("/")[2]
    attempts = trace.attempts(record.backend, ended)
    for number, attempt in enumerate(attempts):
        times = (attempt.began, attempt.ended)
        is_last = number == len(attempts) - 1
        attributes = _of_attempt(attempt, number, operation) | (_of_answer(record, attempt) if is_last else {})
        made = span(trace.attempt_id(number), f"{operation} {attempt.model}", _CLIENT, times, attributes)
        if is_last and record.ttft is not None:
            first = _nanoseconds(zero + record.started + record.ttft)
            made["events"] = [{"timeUnixNano": first, "name": FIRST_TOKEN}]
        spans.append(made)
    return spans


def _of_request(record: Record, scheme: str) -> dict[str, Value]:
    error = (record.error_code or str(record.status)) if is_failed(record) else None
    return {
        "http.request.method": "POST",
        "http.route": record.path,
        "http.response.status_code": record.status,
        "http.request.body.size": record.request_bytes,
        "http.response.body.size": record.sent,
        "url.path": record.path,
        "url.scheme": scheme,
        "client.address": record.client_address,
        "error.type": error,
        "aiaas.request_id": record.request_id,
        "aiaas.user": record.user,
        "aiaas.key_id": record.key_id,
        "aiaas.model": record.model,
        "aiaas.class": record.priority_class,
        "aiaas.error_code": record.error_code,
        "aiaas.ended_by": record.ended_by,
        "aiaas.phase": record.phase if record.ended_by == "client" else None,
        "aiaas.retries": record.retries,
        "aiaas.body_seconds": record.body_seconds or None,
        "aiaas.session_turn": record.session_turn,
    }


def _of_attempt(attempt: FailedAttempt, number: int, operation: str) -> dict[str, Value]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": attempt.model,
        "server.address": attempt.endpoint.host,
        "server.port": attempt.endpoint.port,
        "aiaas.backend": attempt.backend,
        "http.request.resend_count": number or None,
        "http.response.status_code": attempt.status or None,
        "error.type": attempt.error,
    }


def _of_answer(record: Record, attempt: FailedAttempt) -> dict[str, Value]:
    """The facts about the last attempt's answer. Estimated tokens are left out: the model did not report them."""
    ttft = None if record.ttft is None else record.started + record.ttft - attempt.began
    estimated = record.estimated
    return {
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.time_to_first_chunk": ttft,
        "gen_ai.usage.input_tokens": None if estimated else record.input_tokens,
        "gen_ai.usage.output_tokens": None if estimated else record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "http.response.status_code": attempt.status or (record.status if record.ended_by == "upstream" else None),
    }


def _attributes(values: Mapping[str, Value]) -> list[SpanJson]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: Value) -> SpanJson:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value}


def _nanoseconds(seconds: float) -> str:
    return str(int(seconds * 1e9))


def encoded_spans(spans: Sequence[SpanJson]) -> bytes:
    """The spans as elements of a JSON list, without its brackets."""
    return msgspec.json.encode(spans)[1:-1]


def envelope(resource: Mapping[str, Value], version: str) -> tuple[bytes, bytes]:
    """The bytes before and after the spans in the body of an export request."""
    scope = {"name": "aiaas", "version": version}
    about = {"attributes": _attributes(resource)}
    whole = {"resourceSpans": [{"resource": about, "scopeSpans": [{"scope": scope, "spans": []}]}]}
    before, _, after = msgspec.json.encode(whole).rpartition(b"[]")
    return before + b"[", b"]" + after
