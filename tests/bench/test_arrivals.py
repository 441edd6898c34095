"""tests/bench/arrivals.py: clients that arrive at once, against servers that do what a broken proxy might."""

from __future__ import annotations

import asyncio

import pytest

from tests.bench import arrivals as module
from tests.bench import wire
from tests.bench.arrivals import arrivals
from tests.bench.backend import Backend
from tests.bench.load import BadAnswerError
from tests.bench.test_load import Altered, backend, serving

REQUEST = wire.request("k", wire.Stream(2, 50.0))


async def test_each_client_waits_for_its_own_first_byte() -> None:
    """The head comes with the first event, and the second event 20 ms later does not count."""
    async with serving(backend) as port:
        waited = await asyncio.to_thread(arrivals, port, REQUEST, 20)
    assert len(waited) == 20
    assert min(waited) > 0


class Slow(Backend):
    """Answers 30 ms after the request."""

    def data_received(self, data: bytes) -> None:
        self._loop.call_later(0.03, super().data_received, data)


async def test_late_first_byte_counts_from_the_request() -> None:
    """Not from the connection's acceptance, or from the last client's request."""
    async with serving(lambda: Slow(asyncio.get_running_loop())) as port:
        waited = await asyncio.to_thread(arrivals, port, REQUEST, 5)
    assert min(waited) >= 0.029


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "expected a stream", id="refused"),
        pytest.param(wire.STREAM_HEAD + wire.TOKEN_EVENT, "closed before", id="cut off"),
        pytest.param(b"", "expected a stream", id="closed without a byte"),
    ],
)
async def test_arrival_without_a_whole_stream_is_rejected(answer: bytes, said: str) -> None:
    """Errors are not a benchmark."""
    async with serving(lambda: Altered(answer, close=True)) as port:
        with pytest.raises(BadAnswerError, match=said):
            await asyncio.to_thread(arrivals, port, REQUEST, 3)


def test_arrival_where_nothing_listens_is_rejected() -> None:
    """The kernel refuses the connection."""
    with pytest.raises(BadAnswerError, match="cut off"):
        arrivals(1, REQUEST, 1)


async def test_stream_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hanging proxy does not stop the run."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    async with serving(lambda: Altered(wire.STREAM_HEAD, close=True)) as port:
        with pytest.raises(BadAnswerError, match="not all of 1 clients"):
            await asyncio.to_thread(arrivals, port, REQUEST, 1)
