"""aiaas.proxy.traces: one trace through client, gateway and vLLM, and which traces are exported."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp.streams import EMPTY_PAYLOAD

from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.traces import Tracing
from aiaas.proxy.upstream.dial import ClientTls
from tests.fakes.vllm import (
    BUSY,
    DONE,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Send,
    Sleep,
    chunk,
    error_answer,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.keymaterial import leaked_keys
from tests.proxy.conftest import CHAT, Running, StartGateway, config_of, plan_of
from tests.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
BODY = {"model": "m", "messages": []}
STREAMED = {**BODY, "stream": True}
TAKEN = (Send(json_answer({})),)
Spans = list[dict[str, Any]]


def error_of(span: dict[str, Any]) -> str | None:
    """The type of its error."""
    return next((one["value"]["stringValue"] for one in span["attributes"] if one["key"] == "error.type"), None)


def monitoring(collector: FakeVllm, **traces: Any) -> dict[str, Any]:
    """The section `monitoring`; nothing is slow, and nothing is drawn."""
    collector.default = TAKEN
    settings = {"endpoint": collector.url, "sample_ratio": 0, "slow_after": None, "slow_ttft": None}
    return {"traces": settings | traces}


async def exported(running: Running, collector: FakeVllm) -> Spans:
    """All spans that the collector has got, once the gateway has sent what it has."""
    await running.quiet()
    await running.gateway.traces.exporter.close()
    return [
        span
        for post in collector.posts
        for resource in post.json["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def parents_of(fake: FakeVllm) -> list[tuple[str, str, str]]:
    """The trace id, span id and flags that each request to a backend named."""
    return [
        re.fullmatch("00-(.{32})-(.{16})-(..)", post.headers["traceparent"]).groups()  # type: ignore[union-attr]
        for post in fake.posts
    ]


async def test_a_clients_trace_goes_on_to_vllm(gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any) -> None:
    """Its trace id and tracestate; vLLM's parent is the attempt's span, and the log line has the trace id."""
    collector = await fake_vllms()
    running = await gateway(fake_vllm, monitoring=monitoring(collector, sample_ratio=1))
    assert (await (await running.client()).post(BODY, headers=SENT)).status == 200
    request, attempt = await exported(running, collector)
    assert parents_of(fake_vllm) == [(TRACE, attempt["spanId"], "01")]
    assert fake_vllm.posts[0].headers["tracestate"] == "vendor=1"
    assert (request["traceId"], request["parentSpanId"], request["traceState"]) == (TRACE, SPAN, "vendor=1")
    assert attempt["parentSpanId"] == request["spanId"]
    assert running.log_lines()[-1]["trace_id"] == TRACE


async def test_a_trace_begins_where_the_client_has_none(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any
) -> None:
    """Each request has one of its own; an invalid context is replaced, with its tracestate."""
    running = await gateway(fake_vllm, monitoring=monitoring(await fake_vllms()))
    client = await running.client()
    await client.post(BODY)
    await client.post(BODY, headers={"traceparent": "00-1-2-01", "tracestate": "a=b"})
    (first, *_), (second, *_) = parents_of(fake_vllm)
    assert len({first, second}) == 2
    assert "tracestate" not in fake_vllm.posts[1].headers
    assert [line["trace_id"] for line in running.log_lines()] == [first, second]


async def test_traces_off_change_nothing(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The client's headers go on as they are, and the log line has no trace id."""
    running = await gateway(fake_vllm)
    await (await running.client()).post(BODY, headers=SENT)
    assert {name: fake_vllm.posts[0].headers[name] for name in SENT} == SENT
    assert "trace_id" not in running.log_lines()[-1]


@pytest.mark.parametrize(
    ("proxies", "sent", "count"),
    [
        pytest.param([], SENT, 0, id="a stranger"),
        pytest.param(["127.0.0.0/8"], SENT, 2, id="a trusted proxy"),
        pytest.param(["127.0.0.0/8"], {"traceparent": f"00-{TRACE}-{SPAN}-00"}, 0, id="a proxy that does not sample"),
        pytest.param(["192.0.2.0/24"], SENT, 0, id="another one's proxy"),
    ],
)
async def test_sampled_counts_only_from_a_trusted_proxy(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any, proxies: list[str], sent: dict[str, str], count: int
) -> None:
    """Otherwise any client could have everything exported, and vLLM's spans, too."""
    collector = await fake_vllms()
    running = await gateway(fake_vllm, monitoring=monitoring(collector), server={"trusted_proxies": proxies})
    await (await running.client()).post(BODY, headers=sent)
    assert len(await exported(running, collector)) == count
    assert parents_of(fake_vllm)[0][2] == ("01" if count else "00")


@pytest.mark.parametrize(
    ("settings", "body", "count"),
    [
        pytest.param({}, STREAMED, 0, id="none of them"),
        pytest.param({"sample_ratio": 1}, BODY, 2, id="drawn"),
        pytest.param({"slow_after": "1ms"}, BODY, 2, id="slow"),
        pytest.param({"slow_ttft": "1ms"}, STREAMED, 2, id="slow to begin"),
        pytest.param({"slow_ttft": "1ms"}, BODY, 0, id="a whole answer has no first token"),
    ],
)
async def test_slow_and_drawn_requests_are_exported(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any, settings: Any, body: Any, count: int
) -> None:
    """And no others."""
    collector = await fake_vllms()
    whole = stream(token_event(), usage_event(), DONE) if "stream" in body else json_answer({})
    fake_vllm.default = (Sleep(0.005), Send(whole))
    running = await gateway(fake_vllm, monitoring=monitoring(collector, **settings))
    assert (await (await running.client()).post(body)).status == 200
    spans = await exported(running, collector)
    assert len(spans) == count
    assert [event["name"] for span in spans for event in span.get("events", ())] == (
        ["first_token"] if count and "stream" in body else []
    )


@pytest.mark.parametrize(("drawn", "sampled"), [(0.0, True), (0.249, True), (0.25, False), (0.999, False)])
async def test_the_draw_alone_decides_on_a_strangers_trace(drawn: float, sampled: bool) -> None:
    """Its trace id and its flag do not: a client chooses those."""
    settings = {"endpoint": "http://o", "sample_ratio": 0.25}
    plan = plan_of(config_of(["http://v"], {}, {"monitoring": {"traces": settings}}))
    log = JsonLog(lambda _: None, lambda: 0.0, "info")
    tracing = Tracing(log, ClientTls(), lambda: 0.0, lambda: drawn)
    assert plan.monitoring.traces is not None
    for trace_id in ("0" * 31 + "1", "f" * 32):
        headers = {"traceparent": f"00-{trace_id}-{SPAN}-01"}
        request = HttpRequest("POST", "/v1/chat/completions", headers, EMPTY_PAYLOAD)
        trace = tracing.begin(plan.monitoring.traces, request, "192.0.2.1", ())
        assert (trace.trace_id, trace.sampled) == (trace_id, sampled)
        assert trace.lines.endswith("-01\r\n" if sampled else "-00\r\n")


async def test_engine_spans_all_asks_vllm_every_time(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any
) -> None:
    """So that a slow trace has vLLM's spans, though nobody knew that it would be slow."""
    collector = await fake_vllms()
    running = await gateway(fake_vllm, monitoring=monitoring(collector, engine_spans="all"))
    await (await running.client()).post(BODY)
    assert parents_of(fake_vllm)[0][2] == "01"
    assert await exported(running, collector) == []


async def test_a_retry_is_a_second_attempt(gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any) -> None:
    """With a span of its own, which is what vLLM gets; the first one ends as an error."""
    collector = await fake_vllms()
    fake_vllm.play(Send(error_answer(503, BUSY)))
    running = await gateway(fake_vllm, monitoring=monitoring(collector, sample_ratio=1))
    assert (await (await running.client()).post(BODY, headers=SENT)).status == 200
    request, first, second = await exported(running, collector)
    assert [span_id for _, span_id, _ in parents_of(fake_vllm)] == [first["spanId"], second["spanId"]]
    assert {first["parentSpanId"], second["parentSpanId"]} == {request["spanId"]}
    assert [span.get("status") for span in (request, first, second)] == [None, {"code": 2}, None]
    assert int(first["endTimeUnixNano"]) <= int(second["startTimeUnixNano"])


async def test_a_refused_connection_is_an_attempt(gateway: StartGateway, fake_vllms: Any) -> None:
    """The request fails, so that its trace is exported."""
    collector, backend = await fake_vllms(), await fake_vllms()
    await backend.down()
    running = await gateway(backend, backend={"max_retries": 0}, monitoring=monitoring(collector))
    assert (await (await running.client()).post(BODY)).status == 503
    request, attempt = await exported(running, collector)
    assert (error_of(request), error_of(attempt)) == ("no_healthy_backend", "connect")


async def test_a_broken_stream_is_exported(gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any) -> None:
    """Though its status is 200."""
    collector = await fake_vllms()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Close())
    running = await gateway(fake_vllm, monitoring=monitoring(collector))
    assert (await (await running.client()).post(STREAMED)).status == 200
    request, attempt = await exported(running, collector)
    assert request["status"] == attempt["status"] == {"code": 2}
    assert (error_of(request), error_of(attempt)) == ("upstream_error", "reset")


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "mid-stream"])
async def test_a_client_that_leaves_does_not_fail_its_request(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any, begun: bool
) -> None:
    """It is exported like any other request, and says where its client left."""
    collector = await fake_vllms()
    fake_vllm.default = (Send(STREAM_HEAD + chunk(token_event())), Hang()) if begun else (Hang(),)
    for ratio, count in ((0, 0), (1, 2)):
        fake_vllm.posts.clear()
        running = await gateway(fake_vllm, monitoring=monitoring(collector, sample_ratio=ratio))
        client = await running.client()
        client.send(client.request(STREAMED))
        await (client.head() if begun else until(lambda: fake_vllm.posts))
        client.reset()
        spans = await exported(running, collector)
        assert len(spans) == count
    phase = "streaming" if begun else "waiting"
    assert {"key": "aiaas.phase", "value": {"stringValue": phase}} in spans[0]["attributes"]
    assert [span.get("status") for span in spans] == [None, None]


async def test_a_wait_in_the_queue_is_a_span(gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any) -> None:
    """Between the request's arrival and its attempt."""
    collector = await fake_vllms()
    running = await gateway(fake_vllm, backend={"max_inflight": 1}, monitoring=monitoring(collector, sample_ratio=1))
    fake_vllm.play(Hang())
    first, second = await running.client(), await running.client()
    first.send(first.request(BODY))
    await until(lambda: fake_vllm.posts)
    second.send(second.request(BODY))
    await until(lambda: running.backend().fair.length)
    first.reset()
    assert (await second.answer()).status == 200
    spans = [span for span in await exported(running, collector) if span["traceId"] == parents_of(fake_vllm)[1][0]]
    request, queue, attempt = spans
    assert (queue["name"], queue["parentSpanId"]) == ("queue", request["spanId"])
    assert int(queue["startTimeUnixNano"]) <= int(queue["endTimeUnixNano"])
    assert int(attempt["startTimeUnixNano"]) - int(queue["endTimeUnixNano"]) > -5_000_000  # the loop's clock is in ms


async def test_no_prompt_answer_or_key_is_in_a_span(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any
) -> None:
    """Nor anything else that a client or an engine wrote, but for the trace."""
    collector = await fake_vllms()
    fake_vllm.play(Send(stream(token_event("confidential"), usage_event(), DONE)))
    running = await gateway(fake_vllm, monitoring=monitoring(collector, sample_ratio=1))
    body = {**STREAMED, "user": "confidential", "messages": [{"role": "user", "content": "confidential"}]}
    await (await running.client()).post(body, headers={"X-Other": "confidential", "User-Agent": "confidential"})
    assert len(await exported(running, collector)) == 2
    sent = b"".join(post.head + post.body for post in collector.posts)
    assert b"confidential" not in sent
    assert leaked_keys(sent) == []


async def test_a_request_without_a_key_is_never_exported(
    gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any
) -> None:
    """Otherwise anybody could fill the collector."""
    collector = await fake_vllms()
    settings = monitoring(collector, sample_ratio=1, slow_after="1ms")
    running = await gateway(fake_vllm, monitoring=settings, server={"trusted_proxies": ["127.0.0.0/8"]})
    assert (await (await running.client()).post(BODY, key="sk-wrong", headers=SENT)).status == 401
    assert await exported(running, collector) == []
    assert running.log_lines()[-1]["trace_id"] == TRACE


async def test_a_reload_turns_traces_on_and_off(gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any) -> None:
    """For requests that begin after it; one under way ends as it can."""
    collector = await fake_vllms()
    running = await gateway(fake_vllm)
    client = await running.client()
    traced = plan_of(config_of([fake_vllm.url], {}, {"monitoring": monitoring(collector, sample_ratio=1)}))
    running.gateway.replace_plan(traced)
    await client.post(BODY)
    assert len(await exported(running, collector)) == 2
    fake_vllm.play(Hang())
    client.send(client.request(BODY))
    await until(lambda: len(fake_vllm.posts) == 2)
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {}, {})))
    client.reset()
    assert len(await exported(running, collector)) == 2


async def test_an_upload_belongs_to_its_trace(gateway: StartGateway, fake_vllm: FakeVllm, fake_vllms: Any) -> None:
    """A form that is passed on while it arrives names its attempt, too."""
    collector = await fake_vllms()
    paths = {"endpoints": [CHAT, "/v1/audio/transcriptions"]}
    running = await gateway(fake_vllm, backend=paths, monitoring=monitoring(collector, sample_ratio=1))
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\n' + (
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    got = await (await running.client()).post(form, path="/v1/audio/transcriptions", headers=headers)
    assert got.status == 200
    request, attempt = await exported(running, collector)
    assert parents_of(fake_vllm)[0][:2] == (request["traceId"], attempt["spanId"])
    assert attempt["name"] == "transcriptions m"
