"""Instructions of a request's parts, each by itself: a gateway in one process, its two sockets replaced by lists.

    python -m tests.bench.instructions       # runs this under valgrind, and prints it

Each part is called TIMES after a warm-up, between two calls of `getppid`, at which callgrind writes down what it has
counted. Kernel and event loop are not in these figures, so their sum is below that of a real request.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import uvloop
from aiohttp.base_protocol import BaseProtocol

from aiaas.keys.ring import KeyRing
from aiaas.keys.verifier import Verifier
from aiaas.limits.headers import limit_lines
from aiaas.limits.memory import MemoryStore
from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.openai.splice import replace_model
from aiaas.openai.usage import usage_of_answer
from aiaas.proxy.client.answers import HeaderList, relayed_head, whole_answer
from aiaas.proxy.client.identity import presented_key
from aiaas.proxy.client.incoming import Incoming, request_of
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.refusal import ConnectionLimits
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.request.passed import passed_headers
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.upstream.connection import Failure, UpstreamConnection
from aiaas.proxy.upstream.slots import take
from aiaas.proxy.upstream.usual import usual_answer
from aiaas.proxy.usage import UsageRecorder
from tests.bench import wire
from tests.proxy.conftest import KnownKey, new_key, plan_of

KEY: Final = new_key("instructions")
TIMES: Final = 400
WARM_UP: Final = 50
CONFIG: Final[dict[str, Any]] = {
    "server": {"heartbeat": "0s"},
    "backends": {"vllm": {"url": "http://127.0.0.1:9", "models": [wire.SERVED_MODEL, wire.ALIAS], "max_inflight": 64}},
    "rate_limit": {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000},
}
EVENT: Final = wire.token(" world")
Part = tuple[str, Callable[[], object]]


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        pass


class Nowhere:
    """A `Sink` that drops the answer."""

    def head(self, status: int, headers: HeaderList) -> None:
        pass

    def body(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def failed(self, failure: Failure) -> None:
        raise AssertionError(failure)


class Bench:
    """A gateway with one connection on each side."""

    def __init__(self, key: KnownKey = KEY) -> None:
        self.loop = asyncio.get_running_loop()
        self.log, self.metrics = JsonLog(lambda _lines: True, time.time, "info"), Metrics()
        recorder = UsageRecorder(None, self.log, self.metrics)
        verifier = Verifier(KeyRing.from_records([key.record]))
        self.gateway = Gateway(plan_of(CONFIG), verifier, MemoryStore(), self.log, self.metrics, recorder)
        side = OpenSide(self.gateway.handle, ConnectionLimits(10.0, 65536), self.gateway.incidents)
        self.client, self.to_client = side(), Wire()
        self.client.connection_made(self.to_client)
        pool = self.gateway.active.backends["vllm"].endpoints[0].pool
        self.upstream, self.to_upstream = UpstreamConnection(pool, self.loop), Wire()
        self.upstream.connection_made(self.to_upstream)
        pool.give_back(self.upstream)
        self.ask = wire.request(key.text)
        self.health = b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n"

    async def begin(self) -> None:
        """The first request, whose key is new: it has a task."""
        self.client.data_received(self.ask)
        while not self.to_upstream.written:
            await asyncio.sleep(0)
        self.answer()
        while self.client.handler is not None:
            await asyncio.sleep(0)

    def answer(self) -> None:
        """vLLM's answer to a short request."""
        self.to_upstream.written.clear()
        self.upstream.data_received(wire.ANSWER)
        assert self.to_client.written.pop().startswith(b"HTTP/1.1 200 ")

    def whole_request(self) -> None:
        """A short request and its answer."""
        self.client.data_received(self.ask)
        self.answer()

    def whole_health(self) -> None:
        """A request that the gateway answers itself."""
        self.client.data_received(self.health)
        assert self.to_client.written.pop().startswith(b"HTTP/1.1 200 ")

    def begin_stream(self) -> None:
        """A stream after its first two events."""
        self.upstream.idle_since = self.loop.time()  # on a busy machine the parts before took too long for it
        self.client.data_received(wire.request(KEY.text, wire.Stream(100, 1.0)))
        self.upstream.data_received(wire.STREAM_HEAD + wire.token("hello") + wire.token(" again"))
        assert self.to_client.written.pop().startswith(b"HTTP/1.1 200 ")

    def event(self) -> None:
        """An event in the middle of a stream."""
        self.upstream.data_received(EVENT)
        self.to_client.written.clear()


def slot(bench: Bench) -> Callable[[], object]:
    """The cycle of a slot where nothing waits, while another key has requests under way."""
    backend = bench.gateway.active.backends["vllm"]
    endpoint = backend.endpoints[0]
    backend.fair.charge("another", 1000.0)

    lease, asked = SimpleNamespace(key="key"), SimpleNamespace(stream=False, path=wire.PATH)
    ticket: Any = SimpleNamespace(
        body=b"",
        lease=lease,
        record=asked,
        estimated_input=100,
        reserved_output=200,
        priority_class="default",
        upload=None,
        visit=None,
    )
    targets: Any = [(None, backend)]

    def cycle() -> None:
        choice = take(targets, (), ticket, 0.0)
        assert choice is not None
        assert choice[3] is not None
        choice[3].settle(90, 50)
        endpoint.give_back()

    return cycle


def parts(bench: Bench) -> Iterator[Part]:
    """The parts of a request, in the order in which they happen."""
    gateway, loop = bench.gateway, bench.loop
    yield "a request, without sockets", bench.whole_request
    yield "GET /health, without sockets", bench.whole_health
    incoming = Incoming(BaseProtocol(loop), loop, 65536)
    parser = incoming.parser
    assert parser is not None
    yield "the request, read", lambda: incoming.plain(bench.ask)
    yield (
        "(a request of another shape, by aiohttp's parser)",
        lambda: (
            parser.feed_data(bench.ask),
            parser.message_consumed(),
        ),
    )
    got = incoming.next(bench.ask, bench.ask)
    assert isinstance(got, tuple)
    request, body = request_of(*got), bench.ask.partition(b"\r\n\r\n")[2]
    yield "the record", lambda: gateway._record(request, bench.client, gateway.active, wire.PATH)
    yield "the key, out of the headers", lambda: presented_key(request, wire.PATH)
    yield "the key, verified", lambda: gateway.verifier.lookup(KEY.text.encode(), time.time())
    principal = gateway.verifier.lookup(KEY.text.encode(), time.time())
    assert principal is not None
    yield "the body, read", lambda: peek(body, wire.PATH)
    yield "the alias, spliced", lambda: replace_model(body, wire.ALIAS, b'"unsloth/gpt-oss-20b"', plain=True)
    record = gateway._record(request, bench.client, gateway.active, wire.PATH)
    yield "headers for vLLM", lambda: passed_headers(request.headers, record)
    limits = gateway.active.admission.limits_of(principal, paths.CHAT)

    def admitted() -> Any:
        try:
            gateway.store.admit("key", limits, 100, loop.time(), time.time()).send(None)  # type: ignore[attr-defined]
        except StopIteration as end:
            return end.value

    yield "limits, decided and settled", lambda: gateway.store.settle(admitted().lease, 50, loop.time(), time.time())
    result = admitted()
    yield "a slot, charged and settled", slot(bench)
    yield "limits, as headers", lambda: limit_lines(result)
    answers = UpstreamConnection(bench.upstream._pool, loop)
    answers.connection_made(Wire())
    sink = Nowhere()

    def relayed() -> bytes:
        usual = usual_answer(wire.ANSWER)
        assert usual is not None
        return whole_answer(usual[0], b"x: y\r\n", usual[1], close=False)

    def exchanged() -> None:
        answers.exchange(b"", sink)
        answers.data_received(wire.ANSWER)
        bench.upstream._pool.take_idle(loop.time())

    yield "vLLM's answer, read and written", relayed
    yield "(an answer of another shape, parsed)", exchanged
    head, _, answer = wire.ANSWER.partition(b"\r\n\r\n")
    headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])]
    yield (
        "(an answer of another shape, its head)",
        lambda: relayed_head(200, headers, framing=b"", extra=b"x: y\r\n", close=False),
    )
    yield "the usage, read", lambda: usage_of_answer(answer)
    record = Record("0" * 24, wire.PATH, 0.0, "127.0.0.1", user="bench", key_id="key", model=wire.ALIAS, backend="vllm")
    record.status, record.input_tokens, record.output_tokens, record.overhead = 200, 42, 26, 0.001
    yield "the metrics", lambda: bench.metrics.finished(record, 0.1)
    yield "the log line", lambda: bench.log.request(record, 0.1)


def run_parts() -> None:
    """Call all parts, and print their names: for `measured_parts`, which runs this under callgrind."""

    def call(name: str, part: Callable[[], object]) -> None:
        for _ in range(WARM_UP):
            part()
        os.getppid()
        for _ in range(TIMES):
            part()
        os.getppid()
        print(name)

    async def all_parts() -> None:
        bench = Bench()
        await bench.begin()
        call("(the loop of this measurement)", lambda: None)
        for name, part in parts(bench):
            call(name, part)
        bench.begin_stream()
        call("an event, without sockets", bench.event)

    uvloop.run(all_parts())


def measured_parts() -> dict[str, int]:
    """Instructions of each part, by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        command = ["valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={out}", "-q"]
        command += [sys.executable, "-m", "tests.bench.instructions", "parts"]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        names = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
        counts = [_count(Path(f"{out}.{2 * number + 2}")) // TIMES for number in range(len(names))]
        return {name: count - counts[0] for name, count in zip(names[1:], counts[1:], strict=True)}


def _count(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
