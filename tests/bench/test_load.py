"""The load generator, against servers that do what a broken proxy might."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice, repeat

import pytest

from tests.bench import wire
from tests.bench.backend import Backend
from tests.bench.load import BadAnswerError, Tally, closed_loop, open_loop
from tests.bench.streaming import Shape, StreamClient, held_streams, streams_and_probes
from tests.waiting import closed

FEW = Shape(4, 0.01, wire.Stream(40, 100.0))


@asynccontextmanager
async def serving(protocol: Callable[[], asyncio.BaseProtocol]) -> AsyncIterator[int]:
    """The port of a server."""
    made: list[asyncio.BaseProtocol] = []

    def make() -> asyncio.BaseProtocol:
        made.append(protocol())
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await closed(server)
        for each in made:
            each._transport.abort()  # type: ignore[attr-defined]
        await asyncio.sleep(0)  # the loop closes them in its next turn


def backend() -> Backend:
    """The benchmark's own backend."""
    return Backend(asyncio.get_running_loop())


class Altered(asyncio.Protocol):
    """Answers every request with the same bytes, and closes if told so."""

    def __init__(self, answer: bytes, *, close: bool = False) -> None:
        self._answer = answer
        self._close = close

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)  # type: ignore[attr-defined]
        if self._close:
            self._transport.close()


class Counts:
    """The tallies at both marks."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.events: list[int] = []

    def __call__(self, tally: Tally) -> None:
        self.answers.append(tally.answers)
        self.events.append(tally.events)


async def test_a_closed_loop_asks_again_after_each_answer() -> None:
    """More answers than connections, and all counted."""
    marks = Counts()
    async with serving(backend) as port:
        await closed_loop(port, repeat(wire.request("k")), marks, connections=2, warm_up=0.02, seconds=0.5)
    assert marks.answers[1] - marks.answers[0] > 4


async def test_an_open_loop_holds_its_rate() -> None:
    """As many answers and latencies as requests were due in the measured part."""
    due = pytest.approx(40, abs=2)
    async with serving(backend) as port:
        for _ in range(10):  # where this machine stands still in that part, some come behind it
            marks = Counts()
            tally = await open_loop(
                port, repeat(wire.request("k")), marks, connections=4, per_second=200, warm_up=0.02, seconds=0.2
            )
            if marks.answers[1] - marks.answers[0] == len(tally.latencies) == due:
                break
    assert marks.answers[1] - marks.answers[0] == due
    assert len(tally.latencies) == due


def test_varied_heads_differ_and_bodies_are_the_same() -> None:
    """A memo of the head finds nothing twice."""
    heads, bodies = zip(*(each.split(b"\r\n\r\n") for each in islice(wire.varied("k"), 100)), strict=True)
    assert len(set(heads)) == 100
    assert {len(head) for head in heads} == {len(heads[0])}
    assert set(bodies) == {wire.request("k").partition(b"\r\n\r\n")[2]}


async def test_varied_requests_are_answered() -> None:
    """The backend takes the longer head, too."""
    marks = Counts()
    async with serving(backend) as port:
        await closed_loop(port, wire.varied("k"), marks, connections=2, warm_up=0.02, seconds=0.5)
    assert marks.answers[1] - marks.answers[0] > 4


class Late(Backend):
    """Answers 30 ms after the request."""

    def data_received(self, data: bytes) -> None:
        self._loop.call_later(0.03, super().data_received, data)


async def test_an_open_loop_counts_the_wait_for_a_connection() -> None:
    """A proxy that answers too late for the rate pays for what queues up before it."""
    async with serving(lambda: Late(asyncio.get_running_loop())) as port:
        tally = await open_loop(
            port, repeat(wire.request("k")), lambda _: None, connections=1, per_second=100, warm_up=0.0, seconds=0.2
        )
    assert tally.latencies[0] > 0.02
    assert tally.latencies[-1] > 0.08


@pytest.mark.parametrize(
    ("answer", "close", "said"),
    [
        pytest.param(b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", False, "expected a 200", id="refused"),
        pytest.param(wire.ANSWER + b"x", False, "more bytes", id="a byte too many"),
        pytest.param(wire.ANSWER[:-1], True, "closed", id="cut off"),
    ],
)
async def test_anything_but_the_whole_answer_ends_the_measurement(answer: bytes, close: bool, said: str) -> None:
    """Errors are not a benchmark."""
    async with serving(lambda: Altered(answer, close=close)) as port:
        with pytest.raises(BadAnswerError, match=said):
            await closed_loop(port, repeat(wire.request("k")), lambda _: None, connections=1, warm_up=0.0, seconds=5)


async def test_nobody_listening_is_said() -> None:
    """And not taken for a fault of the benchmark."""
    async with serving(backend) as port:
        pass
    with pytest.raises(BadAnswerError, match="no connection"):
        await closed_loop(port, repeat(wire.request("k")), lambda _: None, connections=1, warm_up=0.0, seconds=5)


async def test_streams_are_counted_while_all_run_and_probes_timed() -> None:
    """Four streams of 100 events a second for 50 ms, then two probes."""
    marks = Counts()
    async with serving(backend) as port:
        firsts = await streams_and_probes(
            port, "k", FEW, marks, warm_up=0.01, seconds=0.05, probes=0.02, probe_rate=100
        )
    assert marks.events[1] - marks.events[0] >= 8
    assert len(firsts) == 2


async def test_streams_that_end_too_early_are_rejected() -> None:
    """The window would hold less than all of them."""
    async with serving(backend) as port:
        with pytest.raises(BadAnswerError, match="ended before"):
            await streams_and_probes(
                port, "k", Shape(2, 0.0, wire.Stream(2, 100.0)), lambda _: None,
                warm_up=0.0, seconds=0.1, probes=0.01, probe_rate=100,
            )  # fmt: skip


async def test_a_lost_event_is_noticed() -> None:
    """The backend sends one fewer than the client was promised."""
    fewer = wire.STREAM_HEAD + wire.TOKEN_EVENT + wire.DONE_EVENT + wire.END_OF_CHUNKS
    async with serving(lambda: Altered(fewer)) as port:
        with pytest.raises(BadAnswerError, match="2 events instead of 41"):
            await held_streams(port, "k", FEW, lambda _: None, settle=0.1)


class Deaf(asyncio.Transport):
    """A transport that leads nowhere."""

    def write(self, data: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("at", range(1, 12))
async def test_an_event_that_a_read_cuts_is_counted_once(at: int) -> None:
    """Wherever the read ends, up to the last bytes of the stream."""
    client = StreamClient(tally := Tally(), b"", expected=2)
    client.connection_made(Deaf())
    whole = wire.STREAM_HEAD + wire.TOKEN_EVENT + wire.DONE_EVENT + wire.END_OF_CHUNKS
    cut = len(wire.STREAM_HEAD + wire.TOKEN_EVENT) - at
    for part in (whole[:cut], whole[cut:-at], whole[-at:]):
        client.data_received(part)
    assert (tally.events, tally.finished, tally.started) == (2, 1, 1)
    assert not tally.failed.done()


async def test_held_streams_are_all_open_when_they_are_marked() -> None:
    """Each has had an event, and none has ended."""
    seen: list[tuple[int, int]] = []
    async with serving(backend) as port:
        shape = Shape(5, 0.01, wire.Stream(100, 0.1))
        await held_streams(port, "k", shape, lambda tally: seen.append((tally.started, tally.finished)), settle=0.01)
    assert seen == [(5, 0)]
