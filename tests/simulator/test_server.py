"""A simulator's life on real sockets: stopping, faults, the handle's record. The wire itself: tests/e2e/wire_cases."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aiaas.errors import EnvironmentFault
from aiaas.simulator.faults import FAULT_KINDS, Point, parse_fault
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator

CHAT = "/v1/chat/completions"
FAST = SimulatorOptions(ttft=0.001, itl=0.001)
LOOK = 0.01  # seconds


def body(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 20, "ignore_eos": True, **more}


def request(path: str, content: object) -> bytes:
    data = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def talk(
    handle: SimulatorHandle, content: object, path: str = CHAT, *, silence: float = 0.2
) -> tuple[bytes, str]:
    """The bytes that come back, and how it ended: "closed", "reset" or "silent" (open after `silence` seconds)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", handle.port)
    received = b""
    looks = 0
    try:
        writer.write(request(path, content))
        while looks < silence / LOOK:  # many short looks: a pause of this process takes one of them, not all
            try:
                data = await asyncio.wait_for(reader.read(65536), LOOK)
            except TimeoutError:
                looks += 1
                continue
            if not data:
                return received, "closed"
            received += data
            looks = 0
        return received, "silent"
    except ConnectionResetError:
        return received, "reset"
    finally:
        writer.close()


def tokens_in(received: bytes) -> int:
    return received.count(b'"delta":{"content":')


async def test_a_handle_shows_what_was_received_and_done() -> None:
    """Method, path, headers in lower case, body; and the counts."""
    async with running_simulator(FAST) as simulator:
        await talk(simulator, body(max_tokens=3), silence=0.1)
        stats = await simulator.wait_for(lambda stats: stats.connections == 0)
        (received,) = simulator.received
    assert (received.method, received.path, json.loads(received.body)) == ("POST", CHAT, body(max_tokens=3))
    assert received.headers["content-type"] == "application/json"
    assert received.body_size == len(received.body)
    assert (stats.begun, stats.finished, stats.aborted, stats.generated_tokens, stats.accepted) == (1, 1, 0, 3, 1)


async def test_the_record_is_bounded() -> None:
    """The oldest requests are forgotten."""
    async with running_simulator(FAST, record=2) as simulator:
        for number in range(3):
            await talk(simulator, {"n": number}, "/nope", silence=0.02)
        assert [json.loads(received.body)["n"] for received in simulator.received] == [1, 2]


async def test_condition_never_met_is_a_timeout_with_the_stats() -> None:
    """So that a failing test shows the simulator's record."""
    async with running_simulator(FAST) as simulator:
        with pytest.raises(TimeoutError, match="aborted=0"):
            await simulator.wait_for(lambda stats: stats.aborted == 1, timeout=0.01)


async def test_the_pace_is_precise() -> None:
    """50 tokens at 4 ms after 20 ms end at 216 ms, whatever each write costs; beside busy others now and then."""
    async with running_simulator(SimulatorOptions(ttft=0.02, itl=0.004)) as simulator:
        for _ in range(10):
            begun = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
            writer.write(request(CHAT, body(max_tokens=50, stream=True)))
            await reader.readuntil(b"[DONE]")
            took = time.monotonic() - begun
            writer.close()
            assert took > 0.214
            if took < 0.3:
                return
    pytest.fail("it was slower ten times")


async def test_the_answers_own_server_header_names_the_simulator() -> None:
    """And so do the fingerprint and the text."""
    async with running_simulator(FAST) as simulator:
        received, _ = await talk(simulator, body(), silence=0.1)
    assert b"\r\nserver: aiaas-simulator\r\n" in received
    assert b'"system_fingerprint":"aiaas-simulator' in received
    assert b'"content":"This is the aiaas simulator, not a model.' in received


# --- faults -------------------------------------------------------------------------------------------------------

ERROR_EVENT = (
    b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
    b'"type": "InternalServerError", "param": null, "code": 500}}\n\n'
)

OK = b"HTTP/1.1 200 OK"
LAST_CHUNK = b"\r\n0\r\n\r\n"

STREAM_FAULTS = {
    # fault: (how it ends, tokens that came, a piece of the bytes)
    "none": ("silent", 20, b"data: [DONE]\n\n" + LAST_CHUNK),
    "hang-before-headers": ("silent", 0, b""),
    "reset-before-headers": ("reset", 0, b""),
    "close-before-headers": ("closed", 0, b""),
    "cut-headers": ("closed", 0, OK),
    "huge-headers": ("silent", 0, b"x-huge: xxx"),
    "garbage": ("closed", 0, b"this is no HTTP"),
    "busy": ("silent", 0, b"HTTP/1.1 503 Service Unavailable"),
    "too-many:7": ("silent", 0, b"\r\nretry-after: 7\r\n"),
    "engine-dead": ("silent", 0, b"HTTP/1.1 500 Internal Server Error"),
    "draining": ("closed", 0, b'{"error":{"message":"cannot schedule new futures after shutdown",'),
    "error:418": ("silent", 0, b'"type":"BadRequestError","param":null,"code":418}}'),
    "unhandled-exception": ("closed", 0, b'{"error":{"message":"maximum recursion depth exceeded'),
    "html-error:504": ("silent", 0, b"HTTP/1.1 504 Gateway Timeout"),
    "redirect": ("silent", 0, b"\r\nlocation: http://x/v1/chat/completions\r\n"),
    "page": ("silent", 0, b"content-type: text/html"),
    "unauthorized": ("silent", 0, b'{"error":"Unauthorized"}'),
    "hang-before-first-event": ("silent", 0, OK),
    "reset-before-first-event": ("reset", 0, OK),
    "close-before-first-event": ("closed", 0, OK),
    "end-before-first-event": ("silent", 0, b"\r\n\r\n0\r\n\r\n"),
    "engine-dies-first": ("silent", 0, b"\r\n\r\na9\r\n" + ERROR_EVENT + b"\r\ne\r\ndata: [DONE]\n\n" + LAST_CHUNK),
    "hang-mid-stream:3": ("silent", 3, OK),
    "reset-mid-stream:3": ("reset", 3, OK),
    "close-mid-stream:3": ("closed", 3, OK),
    "end-mid-stream:3": ("silent", 3, b"}\n\n" + LAST_CHUNK),
    "half-event:3": ("closed", 3, OK),
    "garbage-mid-stream:3": ("closed", 3, b"}\n\n\r\nthis is no chunk\r\n"),
    "engine-dies-mid-stream:3": ("silent", 3, b"a9\r\n" + ERROR_EVENT + b"\r\ne\r\ndata: [DONE]\n\n" + LAST_CHUNK),
    "abort-mid-stream:3": ("silent", 4, b'"finish_reason":"abort","stop_reason":null,"token_ids":null}],"system'),
    "excess": ("silent", 20, b"data: [DONE]\n\n" + LAST_CHUNK + b"HTTP/1.1 200 OK\r\n"),
    "slow-tokens:30": ("silent", 1, OK),
}


@pytest.mark.parametrize("fault", STREAM_FAULTS)
async def test_a_fault_strikes_a_stream(fault: str) -> None:
    """Each ends as the table says, after its number of tokens; and nothing runs on once its client has left."""
    end, tokens, piece = STREAM_FAULTS[fault]
    async with running_simulator(FAST) as simulator:
        simulator.set_fault(fault)
        received, ended = await talk(simulator, body(stream=True))
        await simulator.wait_for(lambda stats: stats.connections == 0 and stats.running == 0)
    assert ended == end
    if end == "reset":  # a reset takes what the client's kernel has not handed over yet with it
        assert tokens_in(received) <= tokens
        return
    assert tokens_in(received) == tokens
    assert piece in received
    assert bool(received) == bool(piece)


OF_MESSAGES = {"model": "aiaas-simulator", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
OF_RESPONSES = {"model": "aiaas-simulator", "max_output_tokens": 20, "input": "Hello"}


@pytest.mark.parametrize("fault", ["engine-dies-first", "engine-dies-mid-stream:3"])
async def test_a_dying_engine_in_messages_is_an_error_event(fault: str) -> None:
    """vLLM words it by pydantic, since its own error event is not a chunk of a chat stream, and ends the body."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault(fault)
        received, ended = await talk(simulator, OF_MESSAGES | {"stream": True}, "/v1/messages")
    event = received[received.index(b"event: error\n") :]
    assert event.startswith(
        b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":'
        b'"2 validation errors for ChatCompletionStreamResponse\\nmodel\\n  Field required [type=missing, '
    )
    assert (ended, event.endswith(b"\n\n" + LAST_CHUNK)) == ("silent", True)


@pytest.mark.parametrize(("fault", "tokens"), [("engine-dies-first", 0), ("engine-dies-mid-stream:3", 3)])
async def test_a_dying_engine_in_responses_cuts_the_connection(fault: str, tokens: int) -> None:
    """Without the cause, and without a last chunk."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault(fault)
        received, ended = await talk(simulator, OF_RESPONSES | {"stream": True}, "/v1/responses")
    assert (ended, received.count(b"response.output_text.delta\n")) == ("closed", tokens)
    assert not received.endswith(LAST_CHUNK)
    assert b'error"' not in received.partition(b"\r\n\r\n")[2].replace(b'"error":null', b"")


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("engine-dies-mid-stream", 500, "InternalServerError"),
        ("engine-dead", 500, "InternalServerError"),
        ("draining", 500, "InternalServerError"),
        ("busy", 503, "Service Unavailable"),
    ],
)
async def test_refusals_in_messages_have_the_anthropic_shape(fault: str, status: int, kind: str) -> None:
    """From a dead, draining or busy engine, as vLLM words it on that path."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault(fault)
        received, _ = await talk(simulator, OF_MESSAGES, "/v1/messages")
    head, _, content = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nvary: Origin" in head
    error = json.loads(content)
    assert (error["type"], error["error"].keys(), error["error"]["type"]) == ("error", {"type", "message"}, kind)


def test_every_fault_behind_the_connect_is_tested() -> None:
    """A new row of the table needs a row here."""
    tested = {parse_fault(fault).name for fault in STREAM_FAULTS}
    assert tested == {kind.name for kind in FAULT_KINDS.values() if kind.point is not Point.CONNECT}


async def test_half_an_event_is_half_an_event() -> None:
    """In a whole chunk, so that the event is cut and not the framing."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault("half-event:3")
        received, _ = await talk(simulator, body(stream=True))
    *_, size, event, rest = received.split(b"\r\n")
    assert (len(event), rest) == (int(size, 16), b"")
    assert event.startswith(b'data: {"id":')
    assert b"\n" not in event


@pytest.mark.parametrize(
    ("fault", "end", "status", "whole"),
    [
        ("hang-before-first-event", "silent", b"", False),
        ("reset-before-first-event", "reset", b"", False),
        ("close-before-first-event", "closed", b"", False),
        ("end-before-first-event", "silent", OK, True),
        ("engine-dies-first", "silent", b"HTTP/1.1 500 Internal Server Error", True),
        ("hang-mid-stream", "silent", OK, False),
        ("reset-mid-stream", "reset", OK, False),
        ("close-mid-stream", "closed", OK, False),
        ("end-mid-stream", "silent", OK, True),
        ("half-event", "closed", OK, False),
        ("garbage-mid-stream", "closed", OK, False),
        ("engine-dies-mid-stream", "silent", b"HTTP/1.1 500 Internal Server Error", True),
        ("abort-mid-stream", "silent", b"HTTP/1.1 500 Internal Server Error", True),
    ],
)
async def test_a_fault_strikes_a_whole_answer(fault: str, end: str, status: bytes, whole: bool) -> None:
    """A stream loses everything after some tokens, a whole answer the second half of its bytes."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault(fault)
        received, ended = await talk(simulator, body())
    head, _, content = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert ended == end
    if end == "reset" and not received:
        return  # taken along by the reset
    assert (head.startswith(status), bool(head)) == (True, bool(status))
    if length:
        assert (len(content) == int(length[1])) == whole


async def test_an_aborted_stream_counts_the_tokens_it_sent() -> None:
    """Its usage event comes, too; before the first token it has an empty event with the reason."""
    asked = body(stream=True, stream_options={"include_usage": True})
    async with running_simulator(FAST) as simulator:
        simulator.set_fault("abort-mid-stream:3")
        received, _ = await talk(simulator, asked)
    assert b'"completion_tokens":4}' in received
    assert received.endswith(b"data: [DONE]\n\n" + LAST_CHUNK)


async def test_a_text_position_ends_before_its_token() -> None:
    """30 characters are the seven words before " model."; a stream is never cut inside of a token."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault("close-mid-stream:38c")
        received, _ = await talk(simulator, body(stream=True))
    assert tokens_in(received) == 7
    assert received.rstrip().endswith(b"}")


async def test_a_fault_of_one_request_leaves_the_next_alone() -> None:
    """Also one that is in flight beside it."""
    async with running_simulator(SimulatorOptions(ttft=0.02, itl=0.001)) as simulator:
        simulator.set_fault("close-mid-stream:3,once")
        ends = await asyncio.gather(*(talk(simulator, body(stream=True), silence=0.1) for _ in range(3)))
        after, _ = await talk(simulator, body(stream=True), silence=0.1)
    assert sorted(ended for _, ended in ends) == ["closed", "silent", "silent"]
    assert sorted(tokens_in(received) for received, _ in ends) == [3, 20, 20]
    assert tokens_in(after) == 20


@pytest.mark.parametrize("fault", ["error:500,once", "end-before-first-event,once", "excess,once"])
async def test_every_point_can_strike_once(fault: str) -> None:
    """The second request is answered as usual."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault(fault)
        first, _ = await talk(simulator, body(stream=True), silence=0.05)
        second, _ = await talk(simulator, body(stream=True), silence=0.05)
    assert first != second
    assert tokens_in(second) == 20
    assert second.endswith(LAST_CHUNK)


async def ends_of_all(simulator: SimulatorHandle, *more: dict[str, Any]) -> list[tuple[bytes, str]]:
    """Bytes and end of a stream that comes to the fault's point, and of others that begin when it has two tokens."""
    first = asyncio.create_task(talk(simulator, body(stream=True)))
    await simulator.wait_for(lambda stats: stats.generated_tokens >= 2)
    others = [asyncio.create_task(talk(simulator, content)) for content in more]
    return [await task for task in (first, *others)]


SLOW = SimulatorOptions(ttft=0.01, itl=0.02)


@pytest.mark.parametrize(
    ("fault", "end", "piece"),
    [
        ("reset-mid-stream:8,all", "reset", b""),
        ("close-mid-stream:8,all", "closed", b""),
        ("hang-mid-stream:8,all", "silent", b""),
        ("engine-dies-mid-stream:8,all", "silent", ERROR_EVENT + b"\r\ne\r\ndata: [DONE]\n\n" + LAST_CHUNK),
        ("abort-mid-stream:8,all", "closed", b'"finish_reason":"abort"'),
    ],
)
async def test_a_death_takes_every_request_along(fault: str, end: str, piece: bytes) -> None:
    """Each at its own place, together with those that are not streams."""
    async with running_simulator(SLOW) as simulator:
        simulator.set_fault(fault)
        streams = await ends_of_all(simulator, body(stream=True), body())
        await simulator.wait_for(lambda stats: stats.connections == 0)
    (first, *_), (other, *_), (whole, *_) = streams
    assert [ended for _, ended in streams] == [end] * 3
    assert piece in first
    assert piece in other
    if end != "reset":
        assert 1 <= tokens_in(other) < tokens_in(first) <= 9
    assert b"200 OK" not in whole


async def get_health(simulator: SimulatorHandle) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line


async def test_a_dead_engine_stays_dead() -> None:
    """/health is 503 and a request 500, as with VLLM_KEEP_ALIVE_ON_ENGINE_DEATH."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault("engine-dies-mid-stream:3,all")
        await talk(simulator, body(stream=True))
        assert await get_health(simulator) == b"HTTP/1.1 503 Service Unavailable\r\n"
        received, _ = await talk(simulator, body(stream=True), silence=0.05)
        assert received.startswith(b"HTTP/1.1 500 ")
        simulator.set_fault("none")
        received, _ = await talk(simulator, body(stream=True), silence=0.05)
    assert tokens_in(received) == 20


async def test_a_killed_process_refuses_connections() -> None:
    """Idle connections are closed, too."""
    async with running_simulator(FAST) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        await simulator.wait_for(lambda stats: stats.connections == 1)
        simulator.set_fault("close-mid-stream:3,all")
        await talk(simulator, body(stream=True))
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", simulator.port)


async def test_a_frozen_engine_accepts_and_stays_healthy() -> None:
    """A new stream has its status and no event; /health is 200."""
    async with running_simulator(FAST) as simulator:
        simulator.set_fault("hang-mid-stream:3,all")
        await talk(simulator, body(stream=True))
        assert await get_health(simulator) == b"HTTP/1.1 200 OK\r\n"
        received, ended = await talk(simulator, body(stream=True), silence=0.1)
    assert (received[: len(OK)], tokens_in(received), ended) == (OK, 0, "silent")


async def test_a_death_takes_waiting_requests_along() -> None:
    """They have their status, and get the error event as their first."""
    async with running_simulator(SimulatorOptions(ttft=0.01, itl=0.02, max_num_seqs=1)) as simulator:
        running = asyncio.create_task(talk(simulator, body(stream=True)))
        await simulator.wait_for(lambda stats: stats.running == 1)
        waiting = asyncio.create_task(talk(simulator, body(stream=True)))
        await simulator.wait_for(lambda stats: stats.waiting == 1)
        simulator.strike("engine-dies-mid-stream")
        (_, ended), (received, also_ended) = await running, await waiting
        assert simulator.stats.begun == 1
    assert (ended, also_ended, tokens_in(received)) == ("silent", "silent", 0)
    assert received.endswith(ERROR_EVENT + b"\r\ne\r\ndata: [DONE]\n\n" + LAST_CHUNK)


async def test_a_fault_leaves_what_is_in_flight_alone() -> None:
    """A fault holds from the next request on."""
    async with running_simulator(SimulatorOptions(ttft=0.05, itl=0.001)) as simulator:
        talking = asyncio.create_task(talk(simulator, body(stream=True)))
        await simulator.wait_for(lambda stats: stats.running == 1)
        simulator.set_fault("hang-mid-stream")
        received, _ = await talking
    assert b"[DONE]" in received


async def test_refuse_binds_and_does_not_listen() -> None:
    """Connection refused, and no other process gets the port."""
    options = SimulatorOptions(fault=parse_fault("refuse"))
    async with running_simulator(options) as simulator:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", simulator.port)


async def test_hang_before_connect_neither_accepts_nor_refuses() -> None:
    """Like an address whose packets a firewall drops; the port is free again afterwards."""
    options = SimulatorOptions(fault=parse_fault("hang-before-connect"))
    async with running_simulator(options) as simulator:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.open_connection("127.0.0.1", simulator.port)
    async with running_simulator(FAST, port=simulator.port) as simulator:
        assert (await talk(simulator, body(), silence=0.1))[0].startswith(OK)


async def test_a_second_simulator_on_a_port_is_refused() -> None:
    """With one line of advice."""
    async with running_simulator(FAST) as simulator:
        with pytest.raises(
            EnvironmentFault, match=rf"cannot listen on 127\.0\.0\.1:{simulator.port}: .*; choose another"
        ):
            async with running_simulator(FAST, port=simulator.port):
                pass


# --- a process of its own: signals --------------------------------------------------------------------------------


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "aiaas", "simulate", "--port", "0", "--ttft", "1ms", "--itl", "20ms", *options]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    try:
        match = re.search(r":(\d+) ", child.stderr.readline())
        assert match
        yield child, int(match[1])
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


def streaming(port: int, tokens: int) -> socket.socket:
    """A connection with a stream in flight: its first token has come."""
    client = socket.create_connection(("127.0.0.1", port), timeout=5)
    client.sendall(request(CHAT, body(max_tokens=tokens, stream=True)))
    received = b""
    while tokens_in(received) == 0:
        received += client.recv(65536)
    return client


def refused(port: int) -> bool:
    """Whether the port is closed. A connection that was made while the port closes is reset: not yet."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def wait_until(condition: Any, timeout: float = 3) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_falls_silent_and_waits_for_the_client() -> None:
    """As vLLM does by default: the port is refused, no byte comes, no close, and the process waits for the client."""
    with process() as (child, port), streaming(port, 500) as client:
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(port))
        silent = False
        client.settimeout(0.2)
        while not silent:
            try:
                assert client.recv(65536), "closed"
            except TimeoutError:
                silent = True
        assert child.poll() is None
        client.close()
        assert child.wait(3) == 0


@pytest.mark.parametrize(
    ("fault", "piece"),
    [
        ("engine-dies-mid-stream,sigterm", b'data: {"error": {"message": "EngineCore encountered an issue.'),
        ("abort-mid-stream,sigterm", b'"finish_reason":"abort"'),
        ("close-mid-stream,sigterm", b""),
    ],
)
def test_a_fault_of_sigterm_strikes_every_stream_then(fault: str, piece: bytes) -> None:
    """Until then it does nothing; the port is refused and the process ends by itself."""
    with process("--fault", fault) as (child, port), streaming(port, 500) as client:
        received = b""
        while tokens_in(received) < 10:
            received += client.recv(65536)
        child.send_signal(signal.SIGTERM)
        while data := client.recv(65536):
            received += data
        assert piece in received
        assert received.endswith(LAST_CHUNK) == bool(piece)
        assert child.wait(3) == 0


def test_sigterm_with_a_timeout_ends_streams_and_refuses_new() -> None:
    """500 with vLLM's words for a new generation, 200 for health; then the process ends by itself."""
    with process("--shutdown-timeout", "10s") as (child, port), streaming(port, 25) as client:
        child.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=2) as other:
            other.sendall(request(CHAT, body()))
            answer = other.recv(65536)
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert b'{"error":{"message":"cannot schedule new futures after shutdown",' in answer
        with socket.create_connection(("127.0.0.1", port), timeout=2) as other:
            other.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        received = b""
        while data := client.recv(65536):
            received += data
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert child.wait(3) == 0


def test_sigterm_with_a_timeout_does_not_wait_longer() -> None:
    """A longer stream is cut."""
    with process("--shutdown-timeout", "200ms") as (child, port), streaming(port, 5000):
        child.send_signal(signal.SIGTERM)
        assert child.wait(3) == 0


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM twice"]
)
def test_a_person_need_not_wait(signals: tuple[signal.Signals, ...]) -> None:
    """The process ends at once, with streams or without."""
    with process() as (child, port), streaming(port, 5000):
        for number in signals:
            os.kill(child.pid, number)
            time.sleep(0.1)
        assert child.wait(3) == 0
