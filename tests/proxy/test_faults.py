"""The fault contract (`fault_table.py`), row by row, over real sockets: a client, the gateway, a backend that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from aiaas.simulator.faults import Act, Point, parse_fault
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator
from tests.fakes.vllm import STREAM_HEAD, FakeVllm, Flood, Hang, Send, chunk, token_event
from tests.proxy.conftest import CHAT, Got, Raw, Running
from tests.proxy.fault_page import PAGE, page
from tests.proxy.fault_table import (
    AFTER,
    CLIENTS,
    CUT,
    FAULTS,
    IN_THE_QUEUE,
    QUEUE,
    SCRIPTED,
    SILENT,
    TOKENS,
    Fault,
    Leaving,
    Outcome,
    Queued,
    Says,
    Scripted,
    missing_kinds,
)
from tests.waiting import until

ASK = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS, "ignore_eos": True}
ONE_SLOT = {"requests_per_minute": 100_000, "max_concurrent": 1}
BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
EACH = pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.fault)


@asynccontextmanager
async def simulator(fault: str) -> AsyncIterator[SimulatorHandle]:
    """The engine that `aiaas simulate --fault` starts."""
    options = SimulatorOptions(models=("m",), ttft=0.002, itl=0.001, fault=parse_fault(fault))
    async with running_simulator(options) as handle:
        yield handle


def whole_events(body: bytes) -> list[bytes]:
    """The data of a stream's events; half an event fails the test."""
    if not body:
        return []
    assert body.endswith(b"\n\n"), body[-200:]
    events = body[:-2].split(b"\n\n")
    assert all(event.startswith(b"data: ") for event in events), body
    data = [event.removeprefix(b"data: ") for event in events]
    assert all(isinstance(json.loads(item), dict) for item in data if item != b"[DONE]")
    return data


def tokens_in(events: list[bytes]) -> int:
    """Events with text."""
    deltas = [json.loads(event)["choices"] for event in events if b'"choices"' in event]
    return sum(bool(choices) and bool(choices[0]["delta"].get("content")) for choices in deltas)


def check_client(got: Got, outcome: Outcome, streamed: bool) -> None:
    """Status, headers, body, and the end of it."""
    assert got.status == outcome.status
    assert got.header("x-should-retry") == (None if outcome.should_retry else "false")
    assert got.header("retry-after") == outcome.retry_after
    assert got.header("location") is None
    assert got.header("x-request-id")
    assert got.whole == (outcome.says is not Says.HALF)
    if outcome.says is Says.OUR_ERROR:
        assert got.json["error"]["code"] == outcome.code
    elif outcome.says is Says.ITS_ERROR:
        assert b"upstream_error" not in got.body
        assert got.body
    elif outcome.says is Says.HALF:
        assert 0 < len(got.body) < int(got.header("content-length") or 0)
    elif streamed:
        check_events(whole_events(got.body), outcome)
    elif outcome.says is Says.ANSWER:
        assert got.json


def check_events(events: list[bytes], outcome: Outcome) -> None:
    """How a stream ends, and how much of it came."""
    assert tokens_in(events) == outcome.tokens
    errors = [json.loads(event)["error"]["code"] for event in events if event.startswith(b'{"error"')]
    done = events.count(b"[DONE]")
    if outcome.says is Says.OUR_EVENT:
        assert (errors, done, b'"error"' in events[-1]) == ([outcome.code], 0, True)
    elif outcome.says is Says.ITS_EVENT:
        assert (len(errors), type(errors[0]), done) == (1, int, 1)
    else:
        assert (errors, done) == ([], int(outcome.says in (Says.ANSWER, Says.ITS_ABORT)))


def check_told(running: Running, outcome: Outcome, *, before: int = 0) -> None:
    """The log's line and the metrics. `before` counts good requests that came earlier."""
    line = running.log_lines()[-1]
    retries = outcome.retries[1] if outcome.retries else 0
    assert (line["status"], line["error_code"], line["ended_by"], line["retries"]) == (
        outcome.status, outcome.code, outcome.ended_by, retries
    )  # fmt: skip
    if outcome.says in (Says.OUR_EVENT, Says.ITS_EVENT, Says.SHORT) and outcome.code is not None:
        assert line["output_tokens"] == outcome.tokens  # no error event and no [DONE] among them
    reasons = {outcome.retries[0]: float(retries)} if outcome.retries else {}
    assert samples(running, "aiaas_retries_total") == {f'{{reason="{reason}"}}': n for reason, n in reasons.items()}
    assert samples(running, "aiaas_aborts_total") == {}
    answers = {f'{{code="{outcome.status}",reason="{outcome.code or ""}"}}': 1.0}
    if before:
        answers['{code="200",reason=""}'] = answers.get('{code="200",reason=""}', 0.0) + before
    assert samples(running, "aiaas_responses_total") == answers
    failed = outcome.status >= 400 or outcome.code is not None
    assert running.metric(
        f'inference_requests_total{{endpoint="{CHAT}",model="m",status="{"error" if failed else "success"}"}}'
    ) == 1 + (0 if failed else before)
    assert running.metric("aiaas_requests_in_flight") == 0


def samples(running: Running, metric: str) -> dict[str, float]:
    """Labels -> value of a metric's samples that are not 0."""
    lines = (line.rpartition(" ") for line in running.metrics.expose().decode().splitlines())
    found = {name.removeprefix(metric): float(value) for name, _, value in lines if name.startswith(f"{metric}{{")}
    return {labels: value for labels, value in found.items() if value}


# -- the backend's faults ------------------------------------------------------------------------------------------


@BOTH
@EACH
async def test_fault(gateway: Any, row: Fault, streamed: bool) -> None:
    """With one endpoint: the client's answer, the engine's work, retries, log and counts."""
    outcome = row.stream if streamed else row.whole
    async with simulator(row.fault) as backend:
        running = await gateway(backend.url, backend=outcome.settings())
        got = await (await running.client()).post({**ASK, "stream": streamed})
        await running.quiet()
        check_client(got, outcome, streamed)
        check_told(running, outcome)
        assert len(backend.received) == outcome.sent
        kept = outcome.sent if outcome.kept else 0
        stats = await backend.wait_for(lambda stats: stats.running == 0 and stats.connections == kept)
        assert stats.begun == outcome.begun
        assert [endpoint.failures for endpoint in running.endpoints()] == [outcome.failures]
        assert len({received.body for received in backend.received}) <= 1


@BOTH
@EACH
async def test_fault_beside_a_healthy_endpoint(gateway: Any, row: Fault, streamed: bool) -> None:
    """Of two requests, the one that meets the fault is answered by the other endpoint where that is safe.

    And whatever its end, the key's one slot is free again.
    """
    outcome = row.stream if streamed else row.whole
    async with AsyncExitStack() as stack:
        faulty, healthy = [await stack.enter_async_context(simulator(fault)) for fault in (row.fault, "none")]
        running = await gateway(
            faulty.url, healthy.url, backend={**outcome.settings(), "balance": "round_robin"}, rate_limit=ONE_SLOT
        )
        client = await running.client()
        got = []
        for _ in range(2):
            got.append(await client.post({**ASK, "stream": streamed}))
            await running.quiet()
            if not got[-1].whole:
                client = await running.client()
        lines = running.log_lines()
    assert (len(faulty.received), len(healthy.received)) == (min(outcome.sent, 1), 2 if outcome.rescued else 1)
    fine = [line for line in lines if (line["status"], line["error_code"]) == (200, None)]
    assert len(fine) == (2 if outcome.rescued or (outcome.status, outcome.code) == (200, None) else 1)
    assert sum(line["retries"] for line in lines) == int(outcome.rescued)
    assert sum(tokens_in(whole_events(answer.body)) for answer in got if streamed and answer.status == 200) == (
        TOKENS + (TOKENS if outcome.rescued else outcome.tokens)
    ) * int(streamed)


def test_every_fault_of_the_simulator_is_in_the_table() -> None:
    """A new fault needs a row."""
    assert missing_kinds() == set()


async def test_excess_is_nobodys_answer(gateway: Any) -> None:
    """Bytes that a backend sends behind an answer never reach the next client."""
    async with simulator("excess") as backend:
        running = await gateway(backend.url)
        for streamed in (True, False, True, False):
            got = await (await running.client()).post({**ASK, "stream": streamed})
            assert got.whole
            assert b"excess" not in got.body
            assert len(got.body) > 500
            await backend.wait_for(lambda stats: stats.connections == 0)


@pytest.mark.parametrize("fault", ["close-mid-stream:3", "half-event:3", "garbage-mid-stream:3"])
async def test_messages_break_off_in_their_own_shape(gateway: Any, fault: str) -> None:
    """The Anthropic SDK knows an error by the event's name."""
    async with simulator(fault) as backend:
        running = await gateway(backend.url, backend=CUT.settings())
        got = await (await running.client()).post({**ASK, "stream": True}, path="/v1/messages")
    *events, last, end = got.body.split(b"\n\n")
    assert (got.status, got.whole, end) == (200, True, b"")
    assert [event.count(b"event: content_block_delta\ndata: {") for event in events].count(1) == AFTER
    name, data = last.split(b"\ndata: ")
    assert (name, json.loads(data)["error"]["code"]) == (b"event: error", "upstream_error")


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("hang-before-first-event", replace(SILENT, tokens=0)),
        ("close-before-first-event", replace(CUT, tokens=0)),
        ("engine-dies-first", Outcome(200, Says.ITS_EVENT, "upstream_error", kept=True, failures=1)),
    ],
)
async def test_a_comment_spends_the_status(gateway: Any, fault: str, outcome: Outcome) -> None:
    """An error that would have a status, or be retried, is an event behind the first `: ping`."""
    options = SimulatorOptions(models=("m",), ttft=0.15, itl=0.001, fault=parse_fault(fault))
    async with running_simulator(options) as backend:
        patient = outcome.settings() | {"timeout": "1s"}  # a busy machine may be late with the heartbeat
        running = await gateway(backend.url, backend=patient, server={"heartbeat": "50ms"})
        got = await (await running.client()).post({**ASK, "stream": True})
        await running.quiet()
        assert got.body.startswith(b": ping\n\n")
        got.body = got.body.replace(b": ping\n\n", b"")
        check_client(got, outcome, streamed=True)
        check_told(running, outcome)
        assert len(backend.received) == 1


@pytest.mark.parametrize("row", SCRIPTED, ids=lambda row: row.name)
async def test_scripted_fault(fake_vllm: FakeVllm, gateway: Any, row: Scripted) -> None:
    """The same, for faults that the simulator does not have."""
    running = await gateway(fake_vllm, backend=row.outcome.settings())
    before = 0
    if row.used:
        before = 1
        assert (await (await running.client()).post({**ASK})).status == 200
        assert len(running.endpoints()[0].pool._idle) == 1
    for script in row.scripts[:-1]:
        fake_vllm.play(*script)
    fake_vllm.default = row.scripts[-1]
    got = await (await running.client()).post({**ASK, "stream": row.streamed})
    await running.quiet()
    check_client(got, row.outcome, row.streamed)
    check_told(running, row.outcome, before=before)
    assert len(fake_vllm.posts) - before == row.outcome.sent
    assert [endpoint.failures for endpoint in running.endpoints()] == [row.outcome.failures]
    if not row.outcome.kept:
        async with asyncio.timeout(1):
            await asyncio.gather(*[post.gone.wait() for post in fake_vllm.posts])


# -- in the queue --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def only_slot_taken(fake: FakeVllm, gateway: Any, **fields: Any) -> AsyncIterator[Running]:
    """A gateway whose only endpoint has no free slot."""
    running = await gateway(fake, backend={"max_inflight": 1, **fields})
    (endpoint,) = running.endpoints()
    endpoint.pool.inflight += 1
    yield running
    await running.quiet()
    endpoint.give_back()
    assert (fake.posts, endpoint.failures, endpoint.pool.inflight) == ([], 0, 0)


@BOTH
@pytest.mark.parametrize("row", QUEUE, ids=lambda row: row.what)
async def test_in_the_queue(fake_vllm: FakeVllm, gateway: Any, row: Queued, streamed: bool) -> None:
    """A request that waits in vain gets this answer, and no vLLM sees it."""
    async with only_slot_taken(fake_vllm, gateway, **row.fields) as running:
        client = await running.client()
        client.send(client.request({**ASK, "stream": streamed}))
        if row.then != "nothing":
            await until(lambda: running.backend().waiting == 1)
        if row.then == "the endpoint goes down":
            running.endpoints()[0].set_up(False, "test")
        elif row.then == "draining":
            running.gateway.refuse()
        check_client(await client.answer(), row.outcome, streamed)
        (line,) = running.log_lines()
        assert (line["status"], line["error_code"], line["ended_by"], line["retries"]) == (
            row.outcome.status, row.outcome.code, row.outcome.ended_by, 0
        )  # fmt: skip
        assert samples(running, "aiaas_responses_total") == {
            f'{{code="{row.outcome.status}",reason="{row.outcome.code}"}}': 1.0
        }
        assert running.metric("aiaas_requests_queued") == 0


# -- the client's faults -------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Raw], None]] = {"FIN": Raw.close, "RST": Raw.reset, "half-close": Raw.half_close}


@pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("row", CLIENTS, ids=lambda row: row.name)
async def test_client_leaves(gateway: Any, row: Leaving, leave: Callable[[Raw], None]) -> None:
    """All work for it ends at once, upstream too; nothing is retried and no endpoint is blamed."""
    patient = {"timeout": "30s", "connect_timeout": "30s"}
    async with simulator(row.fault) as backend:
        running = await gateway(backend.url, backend=patient, rate_limit=ONE_SLOT)
        client = await running.client()
        request = client.request({**ASK, "stream": row.streamed})
        client.send(request[:-10] if row.half else request)
        await arrived(row, running, backend)
        if row.phase == "streaming":
            await client.head()
        leave(client)
        await running.quiet()
        stats = await backend.wait_for(lambda stats: stats.running == stats.connections == 0)
        assert (stats.begun, stats.aborted, stats.finished) == (row.begun, row.begun, 0)
        line = running.log_lines()[-1]
        assert (line["status"], line["error_code"], line["ended_by"]) == (row.status, "client_left", "client")
        assert line["retries"] == 0
        assert samples(running, "aiaas_aborts_total") == {f'{{phase="{row.phase}"}}': 1.0}
        assert samples(running, "aiaas_retries_total") == {}
        assert [endpoint.failures for endpoint in running.endpoints()] == [0]
        if not parse_fault(row.fault).strikes(Point.CONNECT):
            backend.set_fault("none")
            assert (await (await running.client()).post(ASK)).status == 200  # its slot is free again


@pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS)
async def test_client_leaves_the_queue(fake_vllm: FakeVllm, gateway: Any, leave: Callable[[Raw], None]) -> None:
    """Its place is free at once, and nobody else notices."""
    row = IN_THE_QUEUE
    async with only_slot_taken(fake_vllm, gateway) as running:
        client = await running.client()
        client.send(client.request({**ASK, "stream": row.streamed}))
        await until(lambda: running.backend().waiting == 1)
        leave(client)
        await until(lambda: running.backend().waiting == 0)
        await until(lambda: bool(running.log_lines()))
        (line,) = running.log_lines()
        assert (line["status"], line["error_code"], line["ended_by"]) == (row.status, "client_left", "client")
        assert samples(running, "aiaas_aborts_total") == {f'{{phase="{row.phase}"}}': 1.0}


async def arrived(row: Leaving, running: Running, backend: SimulatorHandle) -> None:
    """Wait until the request is where the row says."""
    fault = parse_fault(row.fault)
    if row.begun:
        await backend.wait_for(lambda stats: stats.running == 1)
    elif fault.strikes(Point.REQUEST):
        await backend.wait_for(lambda stats: bool(backend.received))
    async with asyncio.timeout(2):
        while running.gateway.in_flight != 1:
            await asyncio.sleep(0.002)
        while fault.strikes(Point.CONNECT) and running.endpoints()[0].pool.inflight != 1:
            await asyncio.sleep(0.002)
    if fault.act is Act.HANG and row.begun:  # for what comes before the silence to be written
        await asyncio.sleep(0.02)


async def test_client_takes_nothing(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Reading from the backend stops, and after `timeout` the client is dropped; only it is to blame."""
    fake_vllm.default = (Send(STREAM_HEAD), Flood(chunk(token_event("x" * 10_000)), 5_000), Hang())
    running = await gateway(fake_vllm, backend={"timeout": "150ms"})
    client = await running.client(receive_buffer=4096)
    client.send(client.request({**ASK, "stream": True}))
    async with asyncio.timeout(5):
        while not (lines := running.log_lines()):
            await asyncio.sleep(0.02)
    await asyncio.wait_for(fake_vllm.posts[0].gone.wait(), 4)
    (line,) = lines
    assert (line["status"], line["error_code"], line["ended_by"]) == (200, "client_too_slow", "client")
    assert samples(running, "aiaas_aborts_total") == {'{phase="streaming"}': 1.0}
    assert [endpoint.failures for endpoint in running.endpoints()] == [0]
    assert fake_vllm.connections[0].flooded < 40_000_000


# -- the page ------------------------------------------------------------------------------------------------------


def test_docs_hold_the_fault_table() -> None:
    """docs/faults.md matches the table: `python -m tests.proxy.fault_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()
