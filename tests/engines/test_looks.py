"""aiaas.engines.looks: when an engine is frozen, by the clock alone, and the requests that find out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from aiaas.engines.looks import (
    DOWN_AFTER,
    FROZEN_AFTER,
    LOOK_INTERVAL,
    LOOK_LATE,
    LOOK_TIMEOUT,
    Looks,
    answers_health,
    makes_progress,
    pause_before_look,
)
from tests.waiting import closed


def after(looks: Looks, count: int) -> Looks:
    """After further looks without an answer, all on time."""
    for _ in range(count):
        began = looks.looked_at + LOOK_INTERVAL
        looks = looks.after(False, began, began + LOOK_TIMEOUT)
    return looks


def test_looks_in_a_row_make_an_engine_down_then_frozen() -> None:
    """One failed look is not enough."""
    looks = Looks(0, 0)
    verdicts = [(after(looks, n).is_down, after(looks, n).is_frozen) for n in range(FROZEN_AFTER + 1)]
    assert verdicts == [(n >= DOWN_AFTER, n >= FROZEN_AFTER) for n in range(FROZEN_AFTER + 1)]
    assert 0 < DOWN_AFTER < FROZEN_AFTER


def test_one_answer_ends_the_row() -> None:
    """However late the answer came."""
    looks = after(Looks(0, 0), FROZEN_AFTER - 1)
    looks = looks.after(True, looks.looked_at + 5, looks.looked_at + 9)
    assert (looks.failed, looks.since) == (0, looks.looked_at)


@pytest.mark.parametrize(
    ("pause", "took"),
    [
        pytest.param(LOOK_INTERVAL + LOOK_LATE + 0.1, 1.0, id="a look came late"),
        pytest.param(LOOK_INTERVAL, LOOK_TIMEOUT + LOOK_LATE + 0.1, id="a look took longer than it may"),
        pytest.param(3600.0, 1.0, id="suspended between looks"),
        pytest.param(LOOK_INTERVAL, 3600.0, id="suspended within a look"),
    ],
)
def test_a_supervisor_that_was_late_counts_anew(pause: float, took: float) -> None:
    """The supervisor was stopped, or the machine suspended: the engine's state is unknown."""
    looks = after(Looks(0, 0), FROZEN_AFTER - 1)
    began = looks.looked_at + pause
    looks = looks.after(False, began, began + took)
    assert looks.failed == 0
    assert not after(looks, FROZEN_AFTER - 1).is_frozen
    assert after(looks, FROZEN_AFTER).is_frozen


def test_a_busy_machine_still_finds_a_frozen_engine() -> None:
    """A slightly late look counts as on time."""
    looks = Looks(0, 0)
    for _ in range(FROZEN_AFTER):
        began = looks.looked_at + LOOK_INTERVAL + LOOK_LATE
        looks = looks.after(False, began, began + LOOK_TIMEOUT + LOOK_LATE)
    assert looks.is_frozen


def test_looks_begin_at_a_steady_pace() -> None:
    """A frozen engine takes LOOK_TIMEOUT over each, and is still found within half a minute."""
    assert pause_before_look(10, 10 + LOOK_TIMEOUT) == LOOK_INTERVAL - LOOK_TIMEOUT
    assert pause_before_look(10, 99) == 0
    assert FROZEN_AFTER * LOOK_INTERVAL == 30


# -- requests to the engine --------------------------------------------------------------------------------------------

Serve = Callable[[Callable[[bytes], bytes | None]], Awaitable[int]]
OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """A server that answers each request line with what a function says; None: never."""
    servers: list[asyncio.Server] = []

    async def start(answer: Callable[[bytes], bytes | None]) -> int:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await reader.readline()
            said = answer(line.split()[1] if line else b"")
            if said is None:
                await reader.read()
            else:
                writer.write(said)
            writer.close()

        servers.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield start
    for server in servers:
        await closed(server)


@pytest.mark.parametrize(
    ("said", "healthy"),
    [(OK, True), (b"HTTP/1.1 503 Busy\r\n\r\n", False), (b"", False), (b"x" * 100_000, False), (None, False)],
    ids=["200", "503", "closed", "no HTTP", "silent"],
)
async def test_only_a_200_is_health(serve: Serve, said: bytes | None, healthy: bool) -> None:
    """Any other answer, or none, is not."""
    assert await answers_health(await serve(lambda _path: said), 0.3) is healthy


async def test_a_refused_connection_is_not_health() -> None:
    """The process lives, its server does not."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    assert not await answers_health(port, 0.3)


@pytest.mark.parametrize("said", [OK, b"HTTP/1.1 404 Not Found\r\n\r\n", b""], ids=["200", "404", "closed"])
async def test_any_answer_to_one_token_is_progress(serve: Serve, said: bytes) -> None:
    """An engine without this path is not frozen for it."""
    port = await serve(lambda path: OK if path == b"/metrics" else said)
    assert await makes_progress(port, "m", 5)


@pytest.mark.parametrize(
    ("metrics", "progress"),
    [
        ([b"vllm:generation_tokens_total 1", b"vllm:generation_tokens_total 1"], False),
        ([b"vllm:generation_tokens_total 1", b"vllm:generation_tokens_total 2"], True),
        ([b"vllm:kv_cache_usage_perc 0.1", b"vllm:kv_cache_usage_perc 0.2"], True),
        ([b"vllm:num_requests_running 1", b"vllm:num_requests_running 0"], True),
        ([b"http_requests_total 1", b"http_requests_total 2"], False),
    ],
)
async def test_metrics_that_move_are_progress(serve: Serve, metrics: list[bytes], progress: bool) -> None:
    """Only the engine core's metrics; its API server counts requests also while the core is frozen."""
    left = iter(metrics)

    def answer(path: bytes) -> bytes | None:
        return OK + next(left) + b"\n" if path == b"/metrics" else None

    assert await makes_progress(await serve(answer), "m", 0.1) is progress


async def test_silent_metrics_are_left_to_health(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server is frozen too, and the looks at /health find that."""
    monkeypatch.setattr("aiaas.engines.looks.LOOK_TIMEOUT", 0.1)
    assert await makes_progress(await serve(lambda _path: None), "m", 0.1)
