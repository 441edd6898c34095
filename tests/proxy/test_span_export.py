"""aiaas.proxy.span_export: spans reach the collector, and no fault of it holds up or fills the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aiaas.plan.model import EndpointPlan
from aiaas.proxy.span_export import BATCH_BYTES, FLUSH_TIME, QUEUE_BYTES, SpanExporter
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.upstream.dial import ClientTls
from tests.fakes.vllm import Close, FakeVllm, Hang, Send, Sleep, Step, answer, json_answer
from tests.ports import free_port
from tests.proxy.conftest import config_of, plan_of
from tests.waiting import until

SPAN = b'{"name":"x"}'
TAKEN = Send(json_answer({"partialSuccess": {}}))


def collector_at(url: str) -> EndpointPlan:
    """The plan of a collector."""
    traces = plan_of(config_of([url], {}, {"monitoring": {"traces": {"endpoint": url}}})).monitoring.traces
    assert traces is not None
    return traces.collector


class Exporting:
    """An exporter to `url`, with what it logged."""

    def __init__(self, url: str, interval: float = 0.0, first_pause: float = 0.001) -> None:
        self.lines: list[bytes] = []
        self.log = JsonLog(self.lines.append, lambda: 0.0, "debug")
        self.exporter = SpanExporter(self.log, ClientTls(), b"[", b"]", interval, first_pause)
        self.exporter.follow(collector_at(url))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Meanwhile it sends."""
        task = asyncio.create_task(self.exporter.run())
        try:
            yield
        finally:
            task.cancel()

    def add(self, *spans: bytes) -> None:
        for one in spans:
            self.exporter.add(one, 1)

    def events(self) -> list[dict[str, Any]]:
        self.log.flush()
        return [json.loads(line) for block in self.lines for line in block.splitlines() if line]

    def counted(self) -> dict[str, float]:
        """The counters that are not 0, by reason; `exported` for the spans that were taken."""
        samples = [sample for metric in self.exporter.collect() for sample in metric.samples]
        return {sample.labels.get("reason", "exported"): sample.value for sample in samples if sample.value}


async def test_spans_are_sent_in_one_batch(fake_vllm: FakeVllm) -> None:
    """By POST to /v1/traces, as JSON."""
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(fake_vllm.url)
    exporting.add(SPAN, SPAN)
    with exporting.running():
        await until(lambda: exporting.counted() == {"exported": 2})
    (post,) = fake_vllm.posts
    assert (post.path, post.json) == ("/v1/traces", [{"name": "x"}, {"name": "x"}])
    assert post.headers["content-type"] == "application/json"
    assert exporting.events() == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_collector_gets_its_batch_again(fake_vllm: FakeVllm, status: int) -> None:
    """After the time that it asked for; the log has the begin and the end of it."""
    busy = Send(answer(status, b"", headers="retry-after: 1\r\n"))
    fake_vllm.play(busy)
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(fake_vllm.url)
    exporting.add(SPAN)
    with exporting.running():
        await until(lambda: exporting.counted() == {"exported": 1})
    first, second = fake_vllm.posts
    assert second.began - first.began > 0.9
    assert first.body == second.body
    assert [event["event"] for event in exporting.events()] == ["traces_not_exported", "traces_exported_again"]
    assert exporting.events()[0]["error"] == f"status {status}"


@pytest.mark.parametrize(
    ("step", "error"),
    [
        pytest.param(Send(answer(400, b"bad span")), "status 400: bad span", id="bad request"),
        pytest.param(Send(answer(404, b"404 page not found\n")), "status 404", id="wrong address"),
        pytest.param(Send(answer(401, b"")), "status 401: ", id="wrong key"),
        pytest.param(Send(answer(307, b"", headers="location: http://other\r\n")), "status 307: ", id="redirect"),
        pytest.param(
            Send(answer(200, b"<html>", content_type="text/html")),
            "a web page",
            id="a page",
        ),
        pytest.param(Send(b"SSH-2.0-OpenSSH\r\n\r\n"), "not valid HTTP", id="not HTTP"),
        pytest.param(Send(answer(200, b"x" * 2 * 1024**2)), "the answer is too long", id="a huge answer"),
    ],
)
async def test_a_refused_batch_is_dropped(fake_vllm: FakeVllm, step: Step, error: str) -> None:
    """It would be refused again; it is counted, and the log has one line for all batches."""
    fake_vllm.default = (step, Close())
    exporting = Exporting(fake_vllm.url)
    with exporting.running():
        for number in (1, 2):
            exporting.add(SPAN)
            await until(lambda: exporting.counted() == {"refused": number})  # noqa: B023
    (event,) = exporting.events()
    assert event["event"] == "traces_refused"
    assert event["error"].startswith(error)


async def test_spans_that_the_collector_rejects_are_counted(fake_vllm: FakeVllm) -> None:
    """A partial success: the number is text in protobuf's JSON."""
    fake_vllm.play(Send(json_answer({"partialSuccess": {"rejectedSpans": "1", "errorMessage": "no attributes"}})))
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(fake_vllm.url)
    exporting.add(SPAN, SPAN)
    with exporting.running():
        await until(lambda: exporting.counted() == {"exported": 1, "refused": 1})
        exporting.add(SPAN)
        await until(lambda: exporting.counted() == {"exported": 2, "refused": 1})
    assert [event["event"] for event in exporting.events()] == ["traces_refused", "traces_exported_again"]
    assert exporting.events()[0]["error"] == "no attributes"


async def test_a_collector_that_is_away_fills_a_bounded_queue() -> None:
    """Spans that do not fit are counted; nothing else is lost."""
    exporting = Exporting(f"http://127.0.0.1:{free_port()}")
    exporting.add(*[b"x" * (QUEUE_BYTES // 10)] * 12)
    with exporting.running():
        await until(lambda: len(exporting.events()) > 0)
    (event,) = exporting.events()
    assert (event["event"], event["level"]) == ("traces_not_exported", "warning")
    assert event["error"] == "connection refused"
    assert exporting.counted() == {"queue_full": 2}


async def test_a_fault_is_one_event_however_long_it_lasts(fake_vllm: FakeVllm) -> None:
    """A batch that is sent again and again does not fill the log."""
    fake_vllm.default = (Send(answer(503, b"")),)
    exporting = Exporting(fake_vllm.url)
    exporting.add(SPAN)
    with exporting.running():
        await until(lambda: len(fake_vllm.posts) >= 4)
    assert [event["event"] for event in exporting.events()] == ["traces_not_exported"]


async def test_a_large_queue_is_sent_in_several_batches(fake_vllm: FakeVllm) -> None:
    """None is larger than BATCH_BYTES, but for a single trace that is."""
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(fake_vllm.url)
    small, large = b'"%b"' % (b"x" * (BATCH_BYTES // 2 - 10)), b'"%b"' % (b"x" * (BATCH_BYTES + 10))
    exporting.add(small, small, small, large)
    with exporting.running():
        await until(lambda: exporting.counted() == {"exported": 4})
    assert [len(post.json) for post in fake_vllm.posts] == [2, 1, 1]


async def test_a_full_batch_does_not_wait_for_the_interval(fake_vllm: FakeVllm) -> None:
    """Otherwise a burst would fill the queue."""
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(fake_vllm.url, interval=3600.0)
    with exporting.running():
        exporting.add(SPAN)
        await asyncio.sleep(0)
        exporting.add(b'"%b"' % (b"x" * BATCH_BYTES))
        await until(lambda: exporting.counted() == {"exported": 2})


async def test_close_sends_what_is_left(fake_vllm: FakeVllm) -> None:
    """At once, and in order."""
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(fake_vllm.url, interval=3600.0)
    exporting.add(SPAN)
    with exporting.running():
        await asyncio.sleep(0)
    await exporting.exporter.close()
    assert exporting.counted() == {"exported": 1}


async def test_close_does_not_wait_for_a_slow_collector(fake_vllm: FakeVllm) -> None:
    """FLUSH_TIME at most; the rest is counted."""
    fake_vllm.default = (Hang(),)
    exporting = Exporting(fake_vllm.url)
    exporting.add(SPAN)
    began = asyncio.get_running_loop().time()
    await exporting.exporter.close()
    assert asyncio.get_running_loop().time() - began < FLUSH_TIME + 2.0
    assert exporting.counted() == {"shutdown": 1}


async def test_close_does_not_wait_for_many_batches(fake_vllm: FakeVllm) -> None:
    """FLUSH_TIME is for all of them."""
    fake_vllm.default = (Sleep(0.4 * FLUSH_TIME), TAKEN)
    exporting = Exporting(fake_vllm.url)
    exporting.add(*[b"x" * BATCH_BYTES] * 3)
    await exporting.exporter.close()
    assert exporting.counted()["shutdown"] >= 1


async def test_a_changed_endpoint_gets_what_was_kept(fake_vllm: FakeVllm) -> None:
    """At once: spans that the old collector did not take do not wait for its pause."""
    fake_vllm.default = (TAKEN,)
    exporting = Exporting(f"http://127.0.0.1:{free_port()}", first_pause=3600.0)
    exporting.add(SPAN)
    with exporting.running():
        await until(lambda: len(exporting.events()) > 0)
        exporting.exporter.follow(collector_at(fake_vllm.url))
        await until(lambda: exporting.counted() == {"exported": 1})
    assert exporting.events()[-1]["event"] == "traces_exported_again"


async def test_traces_turned_off_drop_what_was_kept(fake_vllm: FakeVllm) -> None:
    """And show no metric."""
    exporting = Exporting(fake_vllm.url)
    exporting.add(SPAN)
    exporting.exporter.follow(None)
    assert exporting.counted() == {}
    with exporting.running():
        await asyncio.sleep(0)
    assert fake_vllm.posts == []


async def test_counters_are_there_from_the_start(fake_vllm: FakeVllm) -> None:
    """A series that begins at 0 has a first increase."""
    samples = [sample for metric in Exporting(fake_vllm.url).exporter.collect() for sample in metric.samples]
    assert {(sample.name, sample.labels.get("reason"), sample.value) for sample in samples} == {
        ("aiaas_spans_exported_total", None, 0),
        ("aiaas_spans_dropped_total", "queue_full", 0),
        ("aiaas_spans_dropped_total", "refused", 0),
        ("aiaas_spans_dropped_total", "shutdown", 0),
    }
