"""aiaas.proxy.telemetry.metrics: counts and their labels; and docs/metrics.md agrees with the
exposition."""

import asyncio
import re
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from aiaas.limits.fallback import FallbackStore
from aiaas.limits.redis import RedisStore
from aiaas.limits.redis_url import parse_redis_url
from aiaas.plan.model import EndpointPlan
from aiaas.proxy.engines import Engines
from aiaas.proxy.limit_store import StoreMetrics
from aiaas.proxy.span_export import SpanExporter
from aiaas.proxy.tasks import Keeper
from aiaas.proxy.telemetry.key_counters import exposed
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import LATENCY_BUCKETS, LIMIT_OF, Metrics
from aiaas.proxy.telemetry.record import NO_KEY, Record, Resumption
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.workers.merge import exposition, of_supervisor
from tests.fakes.vllm import DONE, FakeVllm, Send, json_answer, stream, token_event, usage_event
from tests.proxy.conftest import StartGateway

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"


def record(**facts: object) -> Record:
    """A finished request."""
    facts = {"status": 200, "model": "m", "key_id": "k", "input_tokens": 3, "output_tokens": 4} | facts
    return Record("id", CHAT, 0.0, "1.2.3.4", **facts)  # type: ignore[arg-type]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample."""
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


class Elsewhere:
    """The counts of an engine."""

    starts = 2
    deaths = 1


def full() -> Metrics:
    """Metrics with every series in use."""
    metrics = Metrics()
    metrics.finished(record(ttft=0.1, ended_by="client", backend="b", session_turn="first", cached_tokens=1), 1.0)
    for code in LIMIT_OF:
        metrics.refused(code)
    metrics.turned_away("evicted")
    metrics.timings.gaps.labels("m").observe(0.02)
    metrics.retries("busy")
    metrics.resumes.count("m", Resumption("http://e", outcome="resumed", gap=0.1))
    metrics.endpoint_up("b", "http://e", True)
    metrics.endpoint_drains("b", "http://d")
    metrics.models_wrong("b", "http://e", 1)
    metrics.endpoint_bound("b", "http://e", 8)
    metrics.timings.queue_wait.labels("default").observe(0.1)
    metrics.resolved("b", ok=True)
    metrics.reloaded("config", ok=True)
    metrics.config("abc")
    metrics.certificate.show(1.0, 2.0)
    metrics.watch_door(lambda: 0, lambda: 0, lambda: 0)
    engines = Engines()
    engines.add("b", Elsewhere())  # type: ignore[arg-type]
    metrics.register(engines)
    metrics.usage.written(ok=True)
    metrics.register(StoreMetrics(FallbackStore(RedisStore(parse_redis_url("redis://r")), "local", 1)))
    keeper = Keeper(JsonLog(lambda _: None, lambda: 0.0, "info"))
    keeper.failed("usage", ZeroDivisionError(), 0.1)
    metrics.register(keeper)
    exporter = SpanExporter(JsonLog(lambda _: None, lambda: 0.0, "info"), ClientTls(), b"", b"")
    exporter.follow(EndpointPlan("http://o", "o", 80, False, "", {}))
    metrics.register(exporter)
    return metrics


def test_the_plans_three_are_there_by_name() -> None:
    """With the plan's labels, and buckets that go on up to the longest timeout."""
    metrics = full()
    assert value(metrics, "inference_requests_total", model="m", endpoint=CHAT, status="success") == 1
    assert value(metrics, "inference_latency_seconds_count", model="m", endpoint=CHAT) == 1
    assert value(metrics, "tokens_processed_total", model="m", type="input") == 3
    assert value(metrics, "tokens_processed_total", model="m", type="output") == 4
    assert LATENCY_BUCKETS == (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


def test_every_end_without_a_whole_answer_is_an_error() -> None:
    """Also a stream that broke behind its 200."""
    metrics = Metrics()
    for facts in ({"status": 404}, {"status": 499, "error_code": "client_left"}, {"error_code": "upstream_error"}):
        metrics.finished(record(**facts), 1.0)
    assert value(metrics, "inference_requests_total", model="m", endpoint=CHAT, status="error") == 3
    assert value(metrics, "inference_requests_total", model="m", endpoint=CHAT, status="success") == 0


def test_estimated_tokens_count_and_are_told_apart() -> None:
    """Counts are the settled numbers; the part that the backend never reported has a series of its own."""
    metrics = Metrics()
    metrics.finished(record(estimated=True), 1.0)
    metrics.finished(record(), 1.0)
    assert value(metrics, "tokens_processed_total", model="m", type="input") == 6
    assert value(metrics, "tokens_processed_total", model="m", type="output") == 8
    assert value(metrics, "aiaas_tokens_estimated_total", model="m", type="input") == 3
    assert value(metrics, "aiaas_tokens_estimated_total", model="m", type="output") == 4


def test_an_endpoint_that_no_plan_names_has_no_series() -> None:
    """A dashboard would show it as down for ever."""
    metrics = full()
    metrics.endpoint_gone("b", "http://e")
    assert value(metrics, "aiaas_endpoint_up", backend="b", endpoint="http://e") is None


def test_a_removed_key_has_no_series() -> None:
    """Also where a request outlives its key; the sums over all keys stay, and a revoked key is still there."""
    metrics = full()
    for key_id in ("gone", "kept", NO_KEY):
        metrics.finished(record(key_id=key_id), 1.0)
    assert value(metrics, "aiaas_key_requests_total", key_id="gone") == 1
    metrics.keys.keep(frozenset({"kept"}))
    for _ in range(2):
        exposed = metrics.expose()
        assert b'key_id="gone"' not in exposed
        assert b'key_id="k"' not in exposed
        assert value(metrics, "aiaas_key_requests_total", key_id="kept") == 1
        assert value(metrics, "aiaas_key_tokens_total", key_id="kept", type="output") == 4
        assert value(metrics, "aiaas_key_requests_total", key_id=NO_KEY) == 1
        metrics.finished(record(key_id="gone"), 1.0)
    assert value(metrics, "inference_requests_total", model="m", endpoint=CHAT, status="success") == 6
    metrics.keys.keep(frozenset({"kept", "gone"}))
    metrics.finished(record(key_id="gone"), 1.0)
    assert value(metrics, "aiaas_key_requests_total", key_id="gone") == 1  # a counter that starts anew


def test_the_manual_and_the_exposition_agree() -> None:
    """Every metric with its type and labels, in both directions."""
    exposed = {}
    text = full().expose() + exposition(of_supervisor(answering=2, ends=1, hangs=1))
    for family in text_string_to_metric_families(text.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exposed[name] = (family.type, labels)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == exposed


def test_the_process_tells_what_it_uses() -> None:
    """CPU as the system counts it, which never goes backwards; memory in use; open descriptors and their limit."""
    metrics = Metrics()
    before = value(metrics, "process_cpu_seconds_total") or 0.0
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert (value(metrics, "process_cpu_seconds_total") or 0.0) >= before + 0.03  # counted in ticks of 10 ms
    assert value(metrics, "process_resident_memory_bytes") > 1e6
    assert value(metrics, "process_virtual_memory_bytes") > value(metrics, "process_resident_memory_bytes")
    assert 0 < value(metrics, "process_open_fds") < value(metrics, "process_max_fds")
    assert 0 < time.time() - value(metrics, "process_start_time_seconds") < 86_400


async def test_label_values_are_bounded(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Whatever clients invent: models, paths, methods, keys, ids."""
    running = await gateway(fake_vllm, server={"trusted_proxies": ["127.0.0.0/8"]})
    client = await running.client()
    for number in range(20):
        odd = f"odd-{number}"
        await client.post({"model": odd, "messages": []}, headers={"X-Request-Id": odd})
        await client.post({"model": "m"}, path=f"/{odd}")
        await client.get(f"/v1/models/{odd}")
        await client.post({"model": "m"}, key=f"sk-{odd}")
        client.send(f"{odd} / HTTP/1.1\r\n\r\n".encode())
        await client.answer()
        client = await running.client()
    assert "odd-" not in running.metrics.expose().decode()
    assert running.metric(f'inference_requests_total{{endpoint="{CHAT}",model="unknown",status="error"}}') == 40


async def test_a_stream_and_an_answer_are_counted_as_vllm_reported(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Tokens by model and by key, the time of the first token, and the gauge back at 0."""
    running = await gateway(fake_vllm)
    client = await running.client()
    fake_vllm.play(Send(stream(token_event(), usage_event(18, 5), DONE)))
    await client.post({"model": "alias", "messages": [], "stream": True})
    fake_vllm.play(Send(json_answer({"usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}})))
    await client.post({"model": "m", "messages": []})
    key_id = running.log_lines()[-1]["key_id"]
    assert running.metric('tokens_processed_total{model="alias",type="input"}') == 18
    assert running.metric('tokens_processed_total{model="m",type="output"}') == 1
    assert running.metric(f'aiaas_key_tokens_total{{key_id="{key_id}",type="output"}}') == 6
    assert running.metric(f'aiaas_key_requests_total{{key_id="{key_id}"}}') == 2
    assert running.metric('aiaas_time_to_first_token_seconds_count{model="alias"}') == 1
    assert running.metric('aiaas_responses_total{code="200",reason=""}') == 2
    assert running.metric("aiaas_requests_in_flight") == 0


async def test_a_scrape_of_many_keys_does_not_hold_up_the_loop() -> None:
    """While a hundred thousand keys are written out the loop gets its turns, and counting goes on."""
    metrics = Metrics()
    for number in range(100_000):
        metrics.finished(record(key_id=f"key{number}"), 1.0)
    scrape = asyncio.create_task(metrics.aside(exposed))
    turns = 0
    while not scrape.done():
        metrics.finished(record(key_id="late"), 1.0)
        await asyncio.sleep(0.001)
        turns += 1
    assert (await scrape).count(b'aiaas_key_requests_total{key_id="key') == 100_000
    assert turns > 10  # 50 to 100; a scrape on the loop leaves 1
    assert value(metrics, "inference_requests_total", model="m", endpoint=CHAT, status="success") == 100_000 + turns
