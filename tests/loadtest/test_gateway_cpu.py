"""aiaas.loadtest.gateway_cpu: the CPU time between two reads of a metrics port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.loadtest.gateway_cpu import CpuReading, CpuWatch, between, reading
from aiaas.loadtest.runner import Stage
from aiaas.loadtest.sample import GatewayUse
from aiaas.proxy.telemetry.metrics import Metrics
from tests.fakes.vllm import FakeVllm, Send, answer, error_answer


def exposition(cpu: float, requests: int = 0, started: float = 1000.5) -> bytes:
    """A gateway's exposition, with the series that are read and a few others."""
    return (
        f"# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total {cpu}\n"
        f"process_start_time_seconds {started}\nprocess_open_fds 9.0\n"
        f'inference_requests_total{{endpoint="/v1/x",model="a b",status="success"}} {requests}\n'
        f'inference_requests_total{{endpoint="/v1/x",model="a b",status="error"}} 2.0\n'
    ).encode()


def port(*looks: bytes) -> Iterator[Send]:
    """A metrics port that expects this many reads."""
    return (Send(answer(200, look, content_type="text/plain")) for look in looks)


@pytest.fixture
async def watch(fake: FakeVllm) -> AsyncIterator[CpuWatch]:
    """Reads of the fake; its clock advances by ten seconds with each."""
    moments = iter(range(0, 1000, 10))
    made = CpuWatch(parse_target(fake.url), lambda: next(moments))
    yield made
    made.close()


def test_a_reading_sums_the_requests_of_all_series() -> None:
    """Whatever stands in a label."""
    assert reading(exposition(1.25, 40), 7.0) == CpuReading(7.0, 1.25, 1000.5, 42)


def test_the_gateways_own_exposition_is_read() -> None:
    """By the gateway's own names, before its first request as well."""
    got = reading(Metrics().expose(), 7.0)
    assert got.cpu > 0
    assert got.started > 1e9
    assert got.requests == 0


@pytest.mark.parametrize(
    "text",
    [b"", b"<html>", b"vllm:num_requests_running 1.0\n", b"process_cpu_seconds_total x\n"],
    ids=["nothing", "a web page", "without a process", "no number"],
)
def test_exposition_without_process_metrics_is_refused(text: bytes) -> None:
    """With a ValueError."""
    with pytest.raises(ValueError, match=r"process_cpu_seconds_total is missing|could not convert"):
        reading(text, 0.0)


@pytest.mark.parametrize(
    ("after", "use"),
    [
        pytest.param(CpuReading(20.0, 8.1, 1.0, 500), GatewayUse(0.31, 40.0), id="a level"),
        pytest.param(CpuReading(20.0, 5.0, 1.0, 100), GatewayUse(0.0, 0.0), id="idle"),
        pytest.param(CpuReading(10.4, 5.1, 1.0, 101), None, id="too short for the clock"),
        pytest.param(CpuReading(20.0, 8.1, 15.0, 500), None, id="another process"),
        pytest.param(CpuReading(20.0, 4.9, 1.0, 500), None, id="a counter that went backwards"),
    ],
)
def test_use_between_two_reads(after: CpuReading, use: GatewayUse | None) -> None:
    """A second's CPU and requests, or None where the figure would be wrong."""
    assert between(CpuReading(10.0, 5.0, 1.0, 100), after) == use


@pytest.mark.parametrize(
    ("stage", "has_ended"),
    [
        pytest.param(Stage(duration=0.0), False, id="after its duration, while answers are under way"),
        pytest.param(Stage(requests=5), True, id="when its last request is answered"),
    ],
)
async def test_cpu_is_sampled_at_both_ends_of_the_measured_window(
    fake: FakeVllm, watch: CpuWatch, stage: Stage, has_ended: bool
) -> None:
    """Two reads and no more."""
    looks = port(exposition(5.0, 100), exposition(8.1, 500))
    ended = asyncio.Event()

    def next_look() -> tuple[Send, ...]:
        return (next(looks),)

    fake.gets["/metrics"] = next_look()
    watching = asyncio.create_task(watch.over(stage, ended))
    while not fake.got:
        await asyncio.sleep(0)
    fake.gets["/metrics"] = next_look()
    if has_ended:
        await asyncio.sleep(0)
        ended.set()
    async with asyncio.timeout(2):
        assert await watching == GatewayUse(0.31, 40.0)
    assert len(fake.got) == 2


async def test_cpu_is_not_sampled_in_a_stage_that_ends_in_warmup(fake: FakeVllm, watch: CpuWatch) -> None:
    """Ctrl-C in its warm-up."""
    ended = asyncio.Event()
    ended.set()
    assert await watch.over(Stage(warmup=60.0, duration=60.0), ended) is None
    assert fake.got == []


async def test_a_look_that_fails_costs_a_figure_and_not_the_run(fake: FakeVllm, watch: CpuWatch) -> None:
    """A metrics port that has gone, or serves something else."""
    fake.gets["/metrics"] = (Send(error_answer(500, "boom")),)
    assert await watch.over(Stage(duration=0.0), asyncio.Event()) is None
    await fake.stop()
    assert await watch.over(Stage(duration=0.0), asyncio.Event()) is None


async def test_a_wrong_port_is_found_before_any_load(fake: FakeVllm, watch: CpuWatch) -> None:
    """One line that names the right port; nothing for a right one."""
    with pytest.raises(CheckFailed, match=r"process_cpu_seconds_total is missing; give --metrics the gateway's"):
        await watch.first_look()
    fake.gets["/metrics"] = tuple(port(exposition(1.0)))
    await watch.first_look()
    await fake.stop()
    with pytest.raises(EnvironmentFault, match="is the server running"):
        await watch.first_look()
