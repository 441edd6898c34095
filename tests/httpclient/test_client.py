"""The client on real sockets: keep-alive, times of events, and a name for each failure."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time

import pytest

from aiaas.httpclient.answer import Answer
from aiaas.httpclient.client import BrokenError, Exchange, HttpClient, TimedConnection
from aiaas.httpclient.target import parse_target
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Reset,
    Send,
    Sleep,
    Step,
    chunk,
    json_answer,
    stream,
    token_event,
)
from tests.loadtest.conftest import Secure
from tests.waiting import until

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
WHOLE = stream(token_event(), DONE)


async def ask(client: HttpClient, *, timeout: float = 5.0, leave_after: int | None = None) -> tuple[Answer, Exchange]:
    """One request for a stream."""
    answer = Answer(wants_stream=True)
    return answer, await client.send(REQUEST, answer, timeout, leave_after)


async def test_a_connection_is_used_again(fake: FakeVllm) -> None:
    """Three requests one after the other, on one connection."""
    client = HttpClient(parse_target(fake.url))
    for _ in range(3):
        answer, _ = await ask(client)
        assert answer.error == ""
    assert [post.connection for post in fake.posts] == [0, 0, 0]
    client.close()
    await until(lambda: fake.open_connections == 0)


async def test_moments_are_those_of_the_socket(fake: FakeVllm) -> None:
    """The first event cannot have come before the server sent it, nor the second within 100 ms of the first."""
    rest = chunk(token_event()) + chunk(DONE) + LAST_CHUNK
    fake.play(Sleep(0.05), Send(STREAM_HEAD + chunk(token_event())), Sleep(0.1), Send(rest))
    client = HttpClient(parse_target(fake.url))
    before = time.perf_counter()
    answer, exchange = await ask(client)
    first, second = answer.moments
    assert answer.error == ""
    assert before <= exchange.sent <= first - 0.045
    assert second - first >= 0.095
    assert second <= exchange.ended <= time.perf_counter()
    client.close()


async def test_the_clock_is_read_before_anything_is_parsed(fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long an event takes to read, its time is that of its arrival."""
    client = HttpClient(parse_target(fake.url))
    body, parsed = Answer.body, []

    def noted(answer: Answer, data: bytes, now: float) -> None:
        parsed.append(time.perf_counter())
        body(answer, data, now)

    monkeypatch.setattr(Answer, "body", noted)
    answer, exchange = await ask(client)
    assert exchange.sent < answer.moments[0] < parsed[0]
    client.close()


class NoSocket(asyncio.Transport):
    """A transport that accepts everything."""

    def write(self, data: object) -> None: ...

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return False


async def test_twenty_thousand_events_take_less_than_a_second_of_cpu() -> None:
    """Each read brings one event, as from many streams at once; the clock is this process's CPU, not the wall.

    A fifth of that on a quiet machine; with the socket's own cost it is 8.6 us an event (docs/loadtest.md).
    """
    connection = TimedConnection(HttpClient(parse_target("http://h")))
    connection.connection_made(NoSocket())
    exchange = Exchange(Answer(wants_stream=True), asyncio.get_running_loop().create_future(), None)
    connection.begin(REQUEST, exchange)
    connection.data_received(STREAM_HEAD)
    event = chunk(token_event("word"))
    before = time.process_time()
    for _ in range(20_000):
        connection.data_received(event)
    assert time.process_time() - before < 1.0
    assert len(exchange.answer.moments) == 20_000


@pytest.mark.parametrize(
    ("steps", "error", "detail"),
    [
        pytest.param((Close(),), "reset", "closed before an answer", id="closed at once"),
        pytest.param((Reset(),), "reset", "closed before an answer", id="reset at once"),
        pytest.param((Send(STREAM_HEAD), Close()), "cut", "middle of the answer", id="closed behind the head"),
        pytest.param((Send(STREAM_HEAD + chunk(token_event())), Close()), "cut", "middle", id="closed mid-stream"),
        pytest.param((Send(STREAM_HEAD + chunk(token_event())), Reset()), "cut", "middle", id="reset mid-stream"),
        pytest.param((Send(STREAM_HEAD + b"zz\r\n"), Close()), "cut", "not valid HTTP", id="garbage mid-stream"),
        pytest.param((Send(b"hello\r\n\r\n"), Close()), "garbage", "not valid HTTP", id="no HTTP"),
        pytest.param(
            (Send(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000), Close()),
            "garbage",
            "headers of more",
            id="endless head",
        ),
        pytest.param((Hang(),), "timeout", "not complete within 0.2 s", id="silence"),
        pytest.param((Send(STREAM_HEAD + chunk(token_event())), Hang()), "timeout", "0.2 s", id="silence mid-stream"),
        pytest.param((Send(json_answer({"detail": "no"}, status=404)),), "http_404", "", id="an error"),
    ],
)
async def test_each_way_of_breaking_has_its_name(
    fake: FakeVllm, steps: tuple[Step, ...], error: str, detail: str
) -> None:
    """And the next request uses a connection of its own."""
    fake.play(*steps)
    client = HttpClient(parse_target(fake.url))
    answer, _ = await ask(client, timeout=0.2)
    assert (answer.error, detail in answer.detail) == (error, True), answer.detail
    assert (await ask(client))[0].error == ""
    client.close()
    await until(lambda: fake.open_connections == 0)


async def test_idle_connection_closed_by_the_server_is_replaced(fake: FakeVllm) -> None:
    """The request is sent once more, as any client does, without an error."""
    client = HttpClient(parse_target(fake.url))
    await ask(client)
    fake.play(Close())
    answer, _ = await ask(client)
    assert answer.error == ""
    assert [post.connection for post in fake.posts] == [0, 0, 1]
    client.close()


async def test_a_server_that_always_closes_is_an_error_and_no_loop(fake: FakeVllm) -> None:
    """The second connection is new, so its death tells."""
    client = HttpClient(parse_target(fake.url))
    await ask(client)
    fake.default = (Close(),)
    answer, _ = await ask(client)
    assert answer.error == "reset"
    assert len(fake.posts) == 3


@pytest.mark.parametrize(("leave_after", "events"), [(0, 0), (2, 2)], ids=["before the first event", "mid-stream"])
async def test_leaving_on_purpose_ends_the_connection(fake: FakeVllm, leave_after: int, events: int) -> None:
    """The server sees a client that has gone; it does not count as an error."""
    events_come = [step for _ in range(5) for step in (Sleep(0.01), Send(chunk(token_event())))]
    fake.play(Send(STREAM_HEAD), *(events_come if leave_after else ()), Hang())
    client = HttpClient(parse_target(fake.url))
    answer, exchange = await ask(client, leave_after=leave_after)
    assert (exchange.left, answer.error, len(answer.moments)) == (True, "", events)
    await until(lambda: fake.open_connections == 0)


async def test_an_answer_without_a_length_ends_with_its_connection(fake: FakeVllm) -> None:
    """As HTTP/1.0 servers do it."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    fake.play(Send(head + token_event() + DONE), Close())
    client = HttpClient(parse_target(fake.url))
    answer, _ = await ask(client)
    assert (answer.error, len(answer.moments)) == ("", 1)


async def test_a_server_that_closes_whatever_is_opened_is_an_error(fake: FakeVllm) -> None:
    """Before or after the request is sent; never a crash."""
    fake.early = (Close(),)
    client = HttpClient(parse_target(fake.url))
    found = set()
    for _ in range(20):
        try:
            found.add((await ask(client))[0].error)
        except BrokenError as broken:
            found.add(broken.kind)
    assert found == {"reset"}
    connection = TimedConnection(client)
    connection.connection_made(NoSocket())
    connection.connection_lost(None)
    assert not connection.is_open()


async def test_100_continue_does_not_count_as_answer(fake: FakeVllm) -> None:
    """The 100 is skipped."""
    fake.play(Send(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE))
    client = HttpClient(parse_target(fake.url))
    assert (await ask(client))[0].error == ""
    client.close()


async def test_nobody_there_is_said() -> None:
    """A refused connection, or an unknown host name."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(BrokenError, match="refused") as broken:
            await ask(HttpClient(parse_target(f"http://127.0.0.1:{bound.getsockname()[1]}")))
    assert broken.value.kind == "connect"
    with pytest.raises(BrokenError) as broken:
        await ask(HttpClient(parse_target("http://nowhere.invalid")))
    assert broken.value.kind == "connect"


async def test_our_own_lack_of_descriptors_is_not_the_servers_fault(fake: FakeVllm) -> None:
    """The error has a kind of its own."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held, most))
    try:
        with pytest.raises(BrokenError, match="this machine ran out of resources: Too many open files") as broken:
            await ask(HttpClient(parse_target(fake.url)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.close(held)
    assert broken.value.kind == "generator"


async def test_a_certificate_that_does_not_verify_is_said(secure: Secure) -> None:
    """The message names the fault; with --ca or --insecure the request succeeds."""
    with pytest.raises(
        BrokenError, match="its certificate does not verify: signed by an unknown authority, self"
    ) as broken:
        await ask(HttpClient(parse_target(secure.url)))
    assert broken.value.kind == "tls"
    for target in (parse_target(secure.url, ca=secure.certificate), parse_target(secure.url, insecure=True)):
        client = HttpClient(target)
        assert (await ask(client))[0].error == ""
        client.close()


async def test_tls_where_there_is_none_is_said(fake: FakeVllm) -> None:
    """The message says that the port does not speak TLS."""
    with pytest.raises(BrokenError) as broken:
        await ask(HttpClient(parse_target(fake.url.replace("http:", "https:"))), timeout=0.3)
    assert broken.value.kind in ("tls", "timeout", "connect")


async def test_cancelling_a_request_ends_its_connection(fake: FakeVllm) -> None:
    """Ctrl-C leaves nothing generating."""
    fake.default = (Hang(),)
    task = asyncio.create_task(ask(HttpClient(parse_target(fake.url))), name="test-request")
    await until(lambda: len(fake.posts) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: fake.open_connections == 0)
