"""aiaas.proxy.upstream.forward: which attempts are made, and what the client sees when they are spent."""

from __future__ import annotations

import asyncio
import gc
import math
import ssl
from pathlib import Path
from typing import Any

import pytest

from aiaas.proxy.upstream.attempt import End, Outcome
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.forward import RETRY_AFTER_MOST, longest_backoff, pause_before
from aiaas.proxy.upstream.refusals import failure_error
from aiaas.proxy.upstream.waiter import Waiter
from tests.certificate import self_signed
from tests.fakes.vllm import (
    BUSY,
    DONE,
    ENGINE_DEAD,
    LAST_CHUNK,
    SHUT_DOWN,
    Close,
    FakeVllm,
    Hang,
    Reset,
    Send,
    Step,
    Wait,
    answer,
    chunk,
    error_answer,
    error_stream_event,
    json_answer,
    stream,
    token_event,
)
from tests.ports import silent_port
from tests.proxy.conftest import Raw, Running, config_of, new_key
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
PATIENT = {"unhealthy_after": 100}
FINE = (Send(json_answer({"fine": True})),)


def in_turn(running: Running, *fakes: FakeVllm) -> list[FakeVllm]:
    """The fakes in the order in which the next request would try them."""
    by_url = {fake.url: fake for fake in fakes}
    endpoints = running.endpoints()
    start = (running.backend().turn + 1) % len(endpoints)
    return [by_url[endpoint.plan.url] for endpoint in endpoints[start:] + endpoints[:start]]


# -- the rules -----------------------------------------------------------------------------------------------------

# situation: what every attempt meets; attempts allowed at most; status and code that the client sees (a code of None:
# the backend's own answer, byte for byte); whether the SDK is told not to try again.
SITUATIONS: dict[str, tuple[Step, int, int, str | None, bool]] = {
    "engine is busy": (Send(error_answer(503, BUSY, "Service Unavailable")), 99, 503, None, True),
    "engine says 429": (Send(error_answer(429, "slow down")), 99, 429, None, True),
    "busy, in chunks": (
        Send(b'HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\na\r\n{"busy":1}\r\n0\r\n\r\n'),
        99,
        503,
        None,
        True,
    ),
    "engine is dead": (Send(error_answer(500, ENGINE_DEAD)), 2, 502, "upstream_error", True),
    "engine drains": (Send(error_answer(500, SHUT_DOWN)), 2, 502, "upstream_error", True),
    "engine dies before the first event": (
        Send(stream(error_stream_event(), DONE)),
        2,
        502,
        "upstream_error",
        True,
    ),
    "a balancer without a server": (Send(answer(503, b"<html>503</html>")), 2, 503, "no_healthy_backend", True),
    "a balancer whose server broke off": (Send(answer(502, b"<html>502</html>")), 1, 502, "upstream_error", True),
    "a balancer that waited in vain": (Send(answer(504, b"<html>504</html>")), 1, 504, "upstream_timeout", True),
    "asked to wait for too long": (Send(error_answer(503, BUSY, headers="retry-after: 6\r\n")), 1, 503, None, False),
    "another 500": (Send(error_answer(500, "CUDA out of memory")), 1, 500, None, False),
    "a 500 that quotes a dead engine": (Send(error_answer(500, f"x {ENGINE_DEAD}")), 1, 500, None, False),
    "closed": (Close(), 1, 502, "upstream_error", True),
    "reset": (Reset(), 1, 502, "upstream_error", True),
    "nonsense": (Send(b"SSH-2.0-OpenSSH\r\n\r\n"), 1, 502, "upstream_error", True),
    "redirect": (
        Send(answer(307, b"", headers="location: http://vllm:8000/v1/chat/completions\r\n")),
        1,
        502,
        "upstream_error",
        True,
    ),
    "a page": (Send(answer(200, b"<html>", content_type="Text/HTML")), 1, 502, "upstream_error", True),
    "plain words": (Send(answer(200, b"It works", content_type="text/plain")), 1, 502, "upstream_error", True),
    "our key is refused": (Send(json_answer({"error": "Unauthorized"}, status=401)), 1, 502, "upstream_error", True),
    "bad request": (Send(error_answer(400, "max_tokens must be at least 1", "BadRequestError")), 1, 400, None, False),
    "unknown model": (Send(error_answer(404, "does not exist", "NotFoundError")), 1, 404, None, False),
    "unknown path": (Send(json_answer({"detail": "Not Found"}, status=404)), 1, 404, "not_offered", False),
    "silence": (Hang(), 1, 504, "upstream_timeout", True),
}


@pytest.mark.parametrize("max_retries", [0, 1, 3])
@pytest.mark.parametrize(("step", "most", "status", "code", "spent"), SITUATIONS.values(), ids=SITUATIONS)
async def test_attempts(
    fake_vllm: FakeVllm,
    gateway: Any,
    step: Step,
    most: int,
    status: int,
    code: str | None,
    spent: bool,
    max_retries: int,
) -> None:
    """How often each situation is tried, how often generation could have begun, and the client's answer."""
    fake_vllm.default = (step,)
    backend = {"max_retries": max_retries, "timeout": "100ms", "health": PATIENT}
    running = await gateway(fake_vllm, backend=backend)
    got = await (await running.client()).post(STREAM)
    attempts = min(most, max_retries + 1)
    assert len(fake_vllm.posts) == attempts
    assert (got.status, got.whole) == (status, True)
    assert got.header("x-should-retry") == ("false" if spent else None)
    assert got.header("location") is None
    if code is None:
        assert isinstance(step, Send)
        assert got.body == (b'{"busy":1}' if b"chunked" in step.data else step.data.partition(b"\r\n\r\n")[2])
    else:
        assert got.json["error"]["code"] == code
    line = running.log_lines()[-1]
    assert (line["status"], line["retries"], line["error_code"]) == (status, attempts - 1, code)
    assert line["response_bytes"] == (len(got.body) if code is None else 0)
    assert len({post.body for post in fake_vllm.posts}) == 1


@pytest.mark.parametrize("max_retries", [0, 1, 2])
async def test_nothing_listens(fake_vllm: FakeVllm, gateway: Any, max_retries: int) -> None:
    """A refused connection is tried again as often as allowed; then it is 503, for the SDK may try later."""
    await fake_vllm.down()
    running = await gateway(fake_vllm, backend={"max_retries": max_retries, "health": PATIENT})
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"], got.header("retry-after")) == (503, "no_healthy_backend", "5")
    assert running.log_lines()[-1]["retries"] == max_retries
    assert running.metric('aiaas_retries_total{reason="connect"}') == max_retries


async def test_comes_up_between_attempts(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A backend that was refusing a moment ago answers the retry."""
    fake_vllm.play(Send(error_answer(503, BUSY)))
    fake_vllm.default = FINE
    running = await gateway(fake_vllm)
    got = await (await running.client()).post({**CHAT, "model": "alias"})
    assert (got.status, got.json) == (200, {"fine": True})
    assert got.header("x-should-retry") is None
    assert [post.json["model"] for post in fake_vllm.posts] == ["m", "m"]
    assert running.metric('aiaas_retries_total{reason="busy"}') == 1
    line = running.log_lines()[-1]
    assert (line["status"], line["error_code"], line["retries"]) == (200, None, 1)


async def test_distrusted_backend_is_explained_in_the_log_alone(fake_vllms: Any, gateway: Any, tmp_path: Path) -> None:
    """The client does not learn of authorities; with the right one the same backend answers."""
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    fake = await fake_vllms(context)
    url, once = fake.url.replace("http:", "https:"), {"max_retries": 0, "health": {"unhealthy_after": 1}}
    running = await gateway(url, backend=once)
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"]) == (503, "no_healthy_backend")
    assert b"certificate" not in got.body
    assert b"tls" not in got.body
    (line,) = running.log_lines("endpoint_down")
    assert line["reason"] == (
        "its certificate does not verify: signed by an unknown authority, self-signed certificate; name a file with "
        "that authority's certificate in backends.vllm.tls.ca_file"
    )
    fake.play(*FINE)
    running = await gateway(url, backend=once | {"tls": {"ca_file": str(certificate)}})
    assert (await (await running.client()).post(CHAT)).json == {"fine": True}


# -- idle connections ----------------------------------------------------------------------------------------------


async def used_once(running: Running) -> None:
    """Leave a used connection in the pool."""
    assert (await (await running.client()).post(CHAT)).status == 200
    assert len(running.endpoints()[0].pool._idle) == 1


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["FIN", "RST"])
async def test_stale_connection(fake_vllm: FakeVllm, gateway: Any, end: Step) -> None:
    """A connection that the backend had closed costs the client nothing, not even a wait, and the endpoint neither."""
    fake_vllm.default = FINE
    running = await gateway(fake_vllm, backend={"health": {"unhealthy_after": 1}})
    await used_once(running)
    fake_vllm.play(end)
    got = await (await running.client()).post(CHAT)
    assert (got.status, len(fake_vllm.posts)) == (200, 3)
    assert running.metric('aiaas_retries_total{reason="stale"}') == 1
    assert running.endpoints()[0].failures == 0
    assert running.log_lines()[-1]["retries"] == 1


async def test_stale_connections_to_every_endpoint(fake_vllms: Any, gateway: Any) -> None:
    """Whatever closed the idle connections of one endpoint closed those of the next: the retry does not use them."""
    fakes = [await fake_vllms() for _ in range(2)]
    running = await gateway(*fakes)
    client = await running.client()
    for _ in fakes:
        assert (await client.post(CHAT)).status == 200
    first, second = in_turn(running, *fakes)
    first.play(Reset())
    second.default = FINE
    assert (await client.post(CHAT)).json == {"fine": True}
    assert [post.connection for post in second.posts] == [0, 1]


DEAD = (Send(error_answer(500, ENGINE_DEAD)),)
FIRST_EVENT_DEAD = (Send(stream(error_stream_event(), DONE)),)
FULL = (Send(error_answer(503, BUSY)),)
NOBODY = (Send(answer(503, b"<html>503</html>")),)
ENDED = (Close(),)
# One endpoint's script for each attempt on a used connection (the last script is repeated); how many
# attempts it gets; the client's status.
ONCE_FOR_ALL: dict[str, tuple[list[tuple[Step, ...]], int, int]] = {
    "stale, then reset": ([ENDED, (Reset(),)], 2, 502),
    "stale, then the engine dies": ([ENDED, DEAD], 2, 502),
    "stale, then the engine dies in the stream": ([ENDED, FIRST_EVENT_DEAD], 2, 502),
    "stale, then a balancer has nobody": ([ENDED, NOBODY], 2, 503),
    "the engine dies twice": ([DEAD], 2, 502),
    "the engine dies, then a balancer has nobody": ([DEAD, NOBODY], 2, 503),
    "a balancer has nobody, then the engine dies": ([NOBODY, DEAD], 2, 502),
    "stale, then busy": ([ENDED, FULL, FINE], 3, 200),
    "stale, busy, then the engine dies": ([ENDED, FULL, DEAD], 3, 502),
    "stale, busy twice, then the engine dies": ([ENDED, FULL, FULL, DEAD], 4, 502),
    "the engine dies, busy, then it dies again": ([DEAD, FULL, DEAD], 3, 502),
    "busy, then the engine dies": ([FULL, DEAD, FINE], 3, 200),
    "busy, then the engine dies twice": ([FULL, DEAD], 3, 502),
}


@pytest.mark.parametrize(("scripts", "sent", "status"), ONCE_FOR_ALL.values(), ids=ONCE_FOR_ALL)
async def test_once_is_one_attempt_for_all_reasons_together(
    fake_vllm: FakeVllm, gateway: Any, scripts: list[tuple[Step, ...]], sent: int, status: int
) -> None:
    """The request may be what closes connections and kills engines, whatever else happens in between."""
    running = await gateway(fake_vllm, backend={"max_retries": 9, "health": PATIENT})
    await used_once(running)
    for script in scripts:
        fake_vllm.play(*script)
    fake_vllm.default = scripts[-1]
    got = await (await running.client()).post(STREAM)
    assert (got.status, len(fake_vllm.posts) - 1) == (status, sent)
    assert running.log_lines()[-1]["retries"] == sent - 1


async def test_max_retries_of_0_allows_no_second_attempt(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Not even behind a connection that the backend had closed; still the endpoint is not to blame."""
    running = await gateway(fake_vllm, backend={"max_retries": 0})
    await used_once(running)
    fake_vllm.play(Close())
    got = await (await running.client()).post(CHAT)
    assert (got.status, len(fake_vllm.posts), running.endpoints()[0].failures) == (502, 1 + 1, 0)


async def test_reset_of_a_new_connection_is_final(fake_vllm: FakeVllm, gateway: Any) -> None:
    """This request may have closed it: one attempt."""
    running = await gateway(fake_vllm, backend={"max_retries": 5})
    fake_vllm.default = (Reset(),)
    got = await (await running.client()).post(CHAT)
    assert (got.status, len(fake_vllm.posts), running.endpoints()[0].failures) == (502, 1, 1)


async def test_poisonous_request(fake_vllms: Any, gateway: Any) -> None:
    """A request that kills every engine it meets meets two of five, whatever max_retries says."""
    fakes = [await fake_vllms() for _ in range(5)]
    for fake in fakes:
        fake.default = (Send(error_answer(500, ENGINE_DEAD)),)
    running = await gateway(*fakes, backend={"max_retries": 9})
    got = await (await running.client()).post(CHAT)
    assert (got.status, sum(len(fake.posts) for fake in fakes)) == (502, 2)


async def test_nobody_left_after_an_engine_died(fake_vllms: Any, gateway: Any) -> None:
    """The client gets the result of the attempt, and no 503 that invites the SDK to send the same request again."""
    dying, down = await fake_vllms(), await fake_vllms()
    dying.default = (Send(error_answer(500, ENGINE_DEAD)),)
    running = await gateway(dying, down, backend={"max_retries": 5, "max_inflight": 1, "queue": {"size": 0}})
    for endpoint in running.endpoints():
        if endpoint.plan.url == down.url:
            endpoint.pool.inflight = 1  # busy with something else, and nobody may wait
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"], got.header("x-should-retry")) == (502, "upstream_error", "false")
    assert (len(dying.posts), len(down.posts)) == (2, 0)
    assert running.metric('aiaas_retries_total{reason="engine"}') == 1


# -- another endpoint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [Send(error_answer(503, BUSY)), Send(error_answer(500, SHUT_DOWN)), Send(stream(error_stream_event(), DONE))],
    ids=["busy", "draining", "dead before the first event"],
)
async def test_another_endpoint_first(fake_vllms: Any, gateway: Any, step: Step) -> None:
    """The next attempt goes to an endpoint that was not tried yet."""
    fakes = [await fake_vllms() for _ in range(3)]
    running = await gateway(*fakes, backend={"max_retries": 2})
    first, second, third = in_turn(running, *fakes)
    first.default = (step,)
    second.default = (Send(stream(token_event(), DONE)),)
    third.default = (Send(stream(token_event(), DONE)),)
    got = await (await running.client()).post(STREAM)
    assert (got.status, got.body) == (200, token_event() + DONE)
    assert (len(first.posts), len(second.posts) + len(third.posts)) == (1, 1)
    assert running.log_lines()[-1]["upstream"] in (second.url, third.url)


async def test_no_wait_before_another_endpoint(fake_vllms: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff spares an endpoint that was asked already; another one is asked at once."""
    for name in ("BACKOFF_FIRST", "BACKOFF_MOST"):
        monkeypatch.setattr(f"aiaas.proxy.upstream.forward.{name}", 4.0)
    busy, fine = await fake_vllms(), await fake_vllms()
    busy.default, fine.default = (Send(error_answer(503, BUSY)),), FINE
    running = await gateway(busy, fine)
    client = await running.client()
    started = asyncio.get_running_loop().time()
    for _ in range(40):
        assert (await client.post(CHAT)).status == 200
    assert len(busy.posts) == 20
    assert asyncio.get_running_loop().time() - started < 20 * 4.0 / 4


async def test_one_endpoint_refuses(fake_vllms: Any, gateway: Any) -> None:
    """With one of two endpoints gone every request succeeds, before any probe has noticed; then it is down."""
    gone, fine = await fake_vllms(), await fake_vllms()
    await gone.down()
    fine.default = FINE
    running = await gateway(gone, fine)
    client = await running.client()
    for _ in range(8):
        assert (await client.post(CHAT)).status == 200
    assert len(fine.posts) == 8
    assert [endpoint.up for endpoint in running.endpoints()] == [False, True]
    assert running.metric('aiaas_retries_total{reason="connect"}') == 3


async def test_every_endpoint_is_tried_before_one_twice(fake_vllms: Any, gateway: Any) -> None:
    """Three attempts on three busy endpoints are one each."""
    fakes = [await fake_vllms() for _ in range(3)]
    for fake in fakes:
        fake.default = (Send(error_answer(503, BUSY)),)
    running = await gateway(*fakes, backend={"max_retries": 2})
    assert (await (await running.client()).post(CHAT)).status == 503
    assert [len(fake.posts) for fake in fakes] == [1, 1, 1]


async def test_all_endpoints_down(fake_vllms: Any, gateway: Any) -> None:
    """A model without a healthy endpoint is 503 at once, after no attempt; the models list still names it."""
    fakes = [await fake_vllms() for _ in range(2)]
    running = await gateway(*fakes, backend={"health": {"interval": "7s"}})
    for endpoint in running.endpoints():
        endpoint.set_up(False, "test")
    client = await running.client()
    got = await client.post(CHAT)
    assert (got.status, got.json["error"]["code"], got.header("retry-after")) == (503, "no_healthy_backend", "7")
    assert not any(fake.connections for fake in fakes)
    assert [model["id"] for model in (await client.get("/v1/models")).json["data"]] == ["m", "alias"]


@pytest.mark.parametrize(("interval", "seconds"), [("100ms", "1"), ("1400ms", "1"), ("1600ms", "2"), ("9s", "9")])
async def test_nothing_up_retry_after_is_the_probes_interval(
    fake_vllm: FakeVllm, gateway: Any, interval: str, seconds: str
) -> None:
    """In whole seconds, and at least one."""
    running = await gateway(fake_vllm, backend={"health": {"interval": interval, "timeout": "50ms"}})
    running.endpoints()[0].set_up(False, "test")
    assert (await (await running.client()).post(CHAT)).header("retry-after") == seconds


async def test_nothing_up_retry_after_is_the_longest_interval(fake_vllms: Any, gateway: Any) -> None:
    """The longest among the backends that serve the model."""
    config = config_of([(await fake_vllms()).url], {"health": {"interval": "3s"}}, {})
    config["backends"]["other"] = {"url": (await fake_vllms()).url, "models": ["m"], "health": {"interval": "8s"}}
    running = await gateway(config=config)
    for name in ("vllm", "other"):
        running.backend(name).endpoints[0].set_up(False, "test")
    assert (await (await running.client()).post(CHAT)).header("retry-after") == "8"


async def test_goes_down_while_it_is_tried(fake_vllm: FakeVllm, gateway: Any) -> None:
    """When the last endpoint goes down under a request there is nothing left to retry."""
    await fake_vllm.down()
    running = await gateway(fake_vllm, backend={"max_retries": 9, "health": {"unhealthy_after": 2}})
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"]) == (503, "no_healthy_backend")
    assert running.log_lines()[-1]["retries"] == 1


async def test_another_backend_of_the_same_model(fake_vllms: Any, gateway: Any) -> None:
    """A model that two backends serve falls back to the second, under the name that its vLLM knows."""
    first, second = await fake_vllms(), await fake_vllms()
    config = config_of([first.url], {}, {})
    config["backends"]["other"] = {"url": second.url, "models": [{"name": "served", "aliases": ["m"]}]}
    first.default = (Send(error_answer(503, BUSY)),)
    second.default = FINE
    running = await gateway(config=config)
    client = await running.client()
    assert (await client.post(CHAT)).json == {"fine": True}
    assert [first.posts[0].json["model"], second.posts[0].json["model"]] == ["m", "served"]
    assert running.log_lines()[-1]["backend"] == "other"
    running.endpoints()[0].set_up(False, "test")
    assert (await client.post(CHAT)).json == {"fine": True}
    assert (len(first.posts), len(second.posts)) == (1, 2)


async def test_first_backend_is_tried_again_before_the_second(fake_vllms: Any, gateway: Any) -> None:
    """Where every endpoint was tried, the order of preference holds again."""
    first, second = await fake_vllms(), await fake_vllms()
    config = config_of([first.url], {"max_retries": 2}, {})
    config["backends"]["other"] = {"url": second.url, "models": ["m"]}
    for fake in (first, second):
        fake.default = (Send(error_answer(503, BUSY)),)
    running = await gateway(config=config)
    assert (await (await running.client()).post(CHAT)).status == 503
    assert [len(fake.posts) for fake in (first, second)] == [2, 1]


# -- what goes upstream --------------------------------------------------------------------------------------------


async def test_clients_key_stays_here(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Of the client's headers only the few named ones go upstream, and never its key."""
    headers = {"Cookie": "a=b", "X-Api-Key": "k", "User-Agent": "sdk", "Accept": "*/*", "traceparent": "00-1-2-01"}
    running = await gateway(fake_vllm)
    await (await running.client()).post(CHAT, headers=headers)
    (post,) = fake_vllm.posts
    assert set(post.headers) == {
        "host", "accept-encoding", "content-type", "x-request-id", "accept", "traceparent", "content-length"
    }  # fmt: skip
    assert running.key.encode() not in post.head + post.body


async def test_connections_are_reused(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Requests one after the other share one upstream connection, also behind errors; side by side each has its own."""
    fake_vllm.play(Send(error_answer(400, "no")))
    running = await gateway(fake_vllm)
    client = await running.client()
    for _ in range(5):
        await client.post(CHAT)
    assert len(fake_vllm.connections) == 1
    clients = [await running.client() for _ in range(4)]
    await asyncio.gather(*[client.post(CHAT) for client in clients])
    assert len(fake_vllm.connections) <= 4
    assert running.endpoints()[0].pool.inflight == 0


@pytest.mark.parametrize(("retry", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (5, 1.6), (6, 2.0), (10, 2.0)])
def test_longest_backoff(retry: int, seconds: float) -> None:
    """Waits double and are bounded."""
    assert longest_backoff(retry) == pytest.approx(seconds)


def test_pause_before() -> None:
    """The endpoint's Retry-After, and the jitter on top; without a retry where it exceeds the longest wait."""
    longest, longer = RETRY_AFTER_MOST, RETRY_AFTER_MOST + 1
    for asked, least, most in (
        (0, 0, 0.2),
        (3, 3, 3.2),
        (longest, longest, longest + 0.2),
        (longer, math.inf, math.inf),
    ):
        headers = [(b"retry-after", b"%d" % asked)]
        pauses = [pause_before(2, Outcome(End.REFUSED, 503, headers)) for _ in range(50)]
        assert (least <= min(pauses), max(pauses) <= most, len(set(pauses)) > 1) == (True, True, most < math.inf)


@pytest.mark.parametrize("kind", FailureKind)
def test_retry_on_a_new_connection_has_no_pause(kind: FailureKind) -> None:
    """The connection was at fault, and not the endpoint."""
    pauses = {pause_before(1, Outcome(End.FAILED, failure=Failure(kind, "x"))) for _ in range(10)}
    assert (pauses == {0.0}) == (kind is FailureKind.STALE)


# How an exchange broke; status, code, Retry-After, whether the SDK may retry, words of the message.
ERRORS: dict[FailureKind, tuple[int, str, str | None, bool, str]] = {
    FailureKind.CONNECT: (503, "no_healthy_backend", "5", True, "cannot be reached"),
    FailureKind.NO_RESOURCES: (503, "overloaded", "5", True, "no room for another connection"),
    FailureKind.TIMEOUT: (504, "upstream_timeout", None, False, "in time: x."),
    FailureKind.MALFORMED: (502, "upstream_error", None, False, "invalid answer"),
    FailureKind.ENGINE: (502, "upstream_error", None, False, "going down"),
    FailureKind.STALE: (502, "upstream_error", None, False, "broke off"),
    FailureKind.RESET: (502, "upstream_error", None, False, "broke off"),
    FailureKind.INTERNAL: (500, "internal_error", None, False, "its log says why"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_failure_becomes_a_gateway_error(kind: FailureKind) -> None:
    """With this status, code and message; the SDK may repeat only requests that never reached an engine."""
    error = failure_error(Failure(kind, "x"))
    headers = dict(error.headers)
    status, code, retry_after, may_retry, words = ERRORS[kind]
    assert (error.status, error.code, headers.get("retry-after")) == (status, code, retry_after)
    assert (headers.get("x-should-retry") != "false") == may_retry
    assert words in error.message


async def test_retry_after_is_waited_for(fake_vllm: FakeVllm, fake_vllms: Any, gateway: Any) -> None:
    """The same endpoint is not asked again before the time that it said, and one that is down is not an alternative."""
    fake_vllm.play(Send(error_answer(503, BUSY, headers="retry-after: 1\r\n")))
    fake_vllm.default = FINE
    running = await gateway(fake_vllm, down := await fake_vllms())
    for endpoint in running.endpoints():
        if endpoint.plan.url == down.url:
            endpoint.set_up(False, "test")
    began = asyncio.get_running_loop().time()
    assert (await (await running.client()).post(CHAT)).status == 200
    assert asyncio.get_running_loop().time() - began >= 1
    assert len(fake_vllm.posts) == 2


@pytest.mark.parametrize(
    ("seconds", "should_retry"), [(RETRY_AFTER_MOST, "false"), (RETRY_AFTER_MOST + 1, None)], ids=["5 s", "6 s"]
)
async def test_retry_after_decides_whether_the_sdk_may_retry(
    fake_vllm: FakeVllm, gateway: Any, seconds: int, should_retry: str | None
) -> None:
    """The SDK may retry where the gateway itself would not have waited so long."""
    fake_vllm.default = (Send(error_answer(503, BUSY, headers=f"retry-after: {seconds}\r\n")),)
    running = await gateway(fake_vllm, backend={"max_retries": 0})
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.header("retry-after"), got.header("x-should-retry")) == (503, str(seconds), should_retry)


async def test_no_pause_that_ends_behind_the_deadline(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A client whose request must end before the next attempt may begin gets the refusal at once."""
    fake_vllm.default = (Send(error_answer(503, BUSY, headers="retry-after: 3\r\n")),)
    running = await gateway(fake_vllm, backend={"total_timeout": "2s"})
    async with asyncio.timeout(1):
        got = await (await running.client()).post(CHAT)
    assert (got.status, got.header("retry-after"), len(fake_vllm.posts)) == (503, "3", 1)


# The endpoint's answer; its failures in a row afterwards, where there was one before.
TOLD: dict[str, tuple[Step, int]] = {
    "a whole answer": (FINE[0], 0),
    "bad request": (Send(error_answer(400, "no")), 0),
    "busy": (Send(error_answer(503, BUSY)), 0),
    "429": (Send(error_answer(429, "slow down")), 0),
    "unhandled exception": (Send(error_answer(500, "maximum recursion depth exceeded")), 0),
    "dead engine": (Send(error_answer(500, ENGINE_DEAD)), 2),
    "dead before the first event": (Send(stream(error_stream_event(), DONE)), 2),
    "dead in the middle of a stream": (Send(stream(token_event())[:-5] + chunk(error_stream_event()) + LAST_CHUNK), 2),
    "a balancer's 502": (Send(answer(502, b"<html>")), 2),
    "a balancer has nobody": (Send(answer(503, b"<html>")), 2),
    "a balancer's 504": (Send(answer(504, b"<html>")), 2),
    "reset": (Reset(), 2),
    "not HTTP": (Send(b"SSH-2.0-OpenSSH\r\n\r\n"), 2),
    "redirect": (Send(answer(307, b"")), 2),
    "a page": (Send(answer(200, b"<html>", content_type="text/html")), 2),
    "silence": (Hang(), 1),
    "a stream without its end": (Send(stream(token_event())), 1),
}


@pytest.mark.parametrize(("step", "failures"), TOLD.values(), ids=TOLD)
async def test_health_is_told_what_is_the_endpoints_own_fault(
    fake_vllm: FakeVllm, gateway: Any, step: Step, failures: int
) -> None:
    """An answer ends a row of failures, even a refusal; failures that say nothing about the endpoint leave it."""
    fake_vllm.default = (step,)
    running = await gateway(fake_vllm, backend={"max_retries": 0, "timeout": "100ms", "health": PATIENT})
    (endpoint,) = running.endpoints()
    endpoint.report_failure("before")
    await (await running.client()).post(STREAM)
    await running.quiet()
    assert endpoint.failures == failures


async def test_closed_connection_says_nothing_about_health(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A closed connection neither ends a row of failures nor makes it longer."""
    running = await gateway(fake_vllm, backend={"max_retries": 0, "health": PATIENT})
    await used_once(running)
    running.endpoints()[0].report_failure("before")
    fake_vllm.play(Close())
    assert (await (await running.client()).post(CHAT)).status == 502
    assert running.endpoints()[0].failures == 1


async def test_answer_does_not_bring_an_endpoint_back(fake_vllm: FakeVllm, gateway: Any) -> None:
    """An endpoint that probes took out comes back by probes, whatever is still answered."""
    running = await gateway(fake_vllm, backend={"health": PATIENT})
    first, go = await occupied(running, fake_vllm)
    running.endpoints()[0].set_up(False, "test")
    go.set()
    assert (await first.answer()).status == 200
    await running.quiet()
    assert not running.endpoints()[0].up


async def test_tokens_of_a_dead_attempt_do_not_count(fake_vllms: Any, gateway: Any) -> None:
    """Only the tokens of the attempt that the client got."""
    fakes = [await fake_vllms(), await fake_vllms()]
    running = await gateway(*fakes)
    first, second = in_turn(running, *fakes)
    first.default = (Send(stream(error_stream_event() + token_event() + token_event(), DONE)),)
    second.default = (Send(stream(token_event(), DONE)),)
    assert (await (await running.client()).post(STREAM)).body == token_event() + DONE
    await running.quiet()
    assert running.log_lines()[-1]["output_tokens"] == 1


async def test_answer_of_a_balancer_counts_against_health(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Its 502 does not prove that it is alive, and its HTML is not for the client."""
    fake_vllm.default = (Send(answer(502, b"<html>502</html>", content_type="text/html")),)
    running = await gateway(fake_vllm, backend={"health": {"unhealthy_after": 2}})
    client = await running.client()
    codes = [(await client.post(CHAT)).json["error"]["code"] for _ in range(3)]
    assert codes == ["upstream_error", "upstream_error", "no_healthy_backend"]
    assert len(fake_vllm.posts) == 2
    assert running.log_lines("endpoint_down")[0]["reason"] == "status 502 from a proxy in front of vLLM"


async def test_no_pause_before_an_endpoint_that_went_down(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Without a healthy endpoint the client gets its answer at once, and not after the balancer's Retry-After."""
    fake_vllm.default = (Send(answer(503, b"<html>503</html>", headers="retry-after: 4\r\n")),)
    running = await gateway(fake_vllm, backend={"health": {"unhealthy_after": 1}})
    async with asyncio.timeout(3):
        got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"], len(fake_vllm.posts)) == (503, "no_healthy_backend", 1)
    assert got.header("retry-after") == "4"


async def test_connecting_counts_towards_total_timeout(gateway: Any) -> None:
    """A request that is still connecting at its deadline ends then, with 504, and not after `connect_timeout`."""
    fields = {"total_timeout": "100ms", "timeout": "90ms", "connect_timeout": "5s"}
    with silent_port() as port:
        running = await gateway(f"http://127.0.0.1:{port}", backend=fields)
        got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"]) == (504, "upstream_timeout")
    assert running.log_lines()[-1]["duration_seconds"] < 4


# -- max_inflight and the queue ------------------------------------------------------------------------------------

ONE_AT_ONCE = {"max_inflight": 1, "max_retries": 0, "health": PATIENT}


async def queued(running: Running, *bodies: Any, keys: tuple[str | None, ...] = ()) -> list[Raw]:
    """Clients whose requests wait, in this order."""
    clients = []
    for count, body in enumerate(bodies):
        client = await running.client()
        before = running.backend().waiting
        client.send(client.request(body, key=keys[count] if keys else None))
        await until(lambda before=before: running.backend().waiting == before + 1)
        clients.append(client)
    return clients


async def occupied(running: Running, fake: FakeVllm) -> tuple[Raw, asyncio.Event]:
    """A client whose request has the only slot until the event is set."""
    go = asyncio.Event()
    fake.scripts.appendleft((Wait(go), *FINE))
    client = await running.client()
    client.send(client.request(CHAT))
    await until(lambda: len(fake.posts) == 1)
    return client, go


async def test_over_max_inflight_requests_wait_their_turn(fake_vllm: FakeVllm, gateway: Any) -> None:
    """The backend runs `max_in_flight` at once; a waiting request is shown, counted, and served when a slot is free."""
    bob = new_key("bob")
    running = await gateway(fake_vllm, backend=ONE_AT_ONCE, keys=(bob,))
    first, go = await occupied(running, fake_vllm)
    bodies = [{**CHAT, "user": name} for name in ("a1", "a2", "b1")]
    waiting = await queued(running, *bodies, keys=(None, None, bob.text))
    assert (running.metric("aiaas_requests_queued"), running.metric("aiaas_requests_in_flight")) == (3, 4)
    assert len(fake_vllm.posts) == 1
    await asyncio.sleep(0.02)
    go.set()
    assert [(await client.answer()).status for client in (first, *waiting)] == [200] * 4
    assert [post.json.get("user") for post in fake_vllm.posts] == [None, "b1", "a1", "a2"]
    assert running.metric("aiaas_requests_queued") == 0
    waits = [line["queue_seconds"] for line in running.log_lines()]
    assert waits[0] == 0
    assert all(0.01 < wait < 2 for wait in waits[1:])
    assert running.endpoints()[0].pool.inflight == 0


def remaining(got: Any) -> int:
    """How many requests the key has left at once."""
    return int(got.header("x-ratelimit-remaining-requests"))


async def test_full_queue_refuses_at_once(fake_vllm: FakeVllm, gateway: Any) -> None:
    """One more than the queue holds is 503 with Retry-After, and costs the key nothing."""
    limits = {"requests_per_minute": 5}
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "queue": {"size": 1}}, rate_limit=limits)
    first, go = await occupied(running, fake_vllm)
    (waiting,) = await queued(running, CHAT)
    for _ in range(5):
        got = await (await running.client()).post(CHAT)
        assert (got.status, got.json["error"]["code"]) == (503, "overloaded")
        assert got.header("retry-after") == "5"
    go.set()
    assert [(await client.answer()).status for client in (first, waiting)] == [200, 200]
    assert len(fake_vllm.posts) == 2
    assert running.metric('aiaas_responses_total{code="503",reason="overloaded"}') == 5


async def test_request_waits_where_only_one_endpoint_is_up(fake_vllms: Any, gateway: Any) -> None:
    """An endpoint that is down keeps nobody from waiting for the other one's slot."""
    busy, down = await fake_vllms(), await fake_vllms()
    running = await gateway(busy, down, backend=ONE_AT_ONCE)
    for endpoint in running.endpoints():
        if endpoint.plan.url == down.url:
            endpoint.set_up(False, "test")
    first, go = await occupied(running, busy)
    (waiting,) = await queued(running, CHAT)
    go.set()
    assert [(await client.answer()).status for client in (first, waiting)] == [200, 200]
    assert (len(busy.posts), len(down.posts)) == (2, 0)


async def test_queue_of_none(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A size of 0 refuses whatever has no slot at once."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "queue": {"size": 0}})
    first, go = await occupied(running, fake_vllm)
    assert (await (await running.client()).post(CHAT)).json["error"]["code"] == "overloaded"
    go.set()
    assert (await first.answer()).status == 200


# what ends the waiting: the backend's fields, the status, the code
TOO_LATE = {
    "max_wait": ({"queue": {"max_wait": "30ms"}}, 503, "overloaded"),
    "total_timeout": ({"total_timeout": "30ms"}, 504, "upstream_timeout"),
    "max_wait before total_timeout": ({"queue": {"max_wait": "30ms"}, "total_timeout": "5s"}, 503, "overloaded"),
}


@pytest.mark.parametrize(("fields", "status", "code"), TOO_LATE.values(), ids=TOO_LATE)
async def test_waits_no_longer_than_allowed(
    fake_vllm: FakeVllm, gateway: Any, fields: dict[str, Any], status: int, code: str
) -> None:
    """Whichever limit is first; no backend saw the request, so it costs nothing."""
    limits = {"requests_per_minute": 2}
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, **fields}, rate_limit=limits)
    client = await running.client()
    running.endpoints()[0].pool.inflight += 1  # somebody's request that does not end
    for _ in range(3):
        got = await client.post(CHAT)
        assert (got.status, got.json["error"]["code"]) == (status, code)
    assert fake_vllm.posts == []
    line = running.log_lines()[-1]
    assert (line["backend"], line["upstream"], line["ended_by"]) == ("vllm", None, "gateway")
    assert 0.02 < line["queue_seconds"] < 1
    assert running.backend().waiting == 0


async def test_client_that_leaves_the_queue(fake_vllm: FakeVllm, gateway: Any) -> None:
    """The request is gone at once, no backend hears of it, it costs nothing, and those behind it move up."""
    running = await gateway(fake_vllm, backend=ONE_AT_ONCE, rate_limit={"requests_per_minute": 10})
    first, go = await occupied(running, fake_vllm)
    leaver, stayer = await queued(running, {**CHAT, "user": "leaver"}, {**CHAT, "user": "stayer"})
    leaver.reset()
    await until(lambda: running.backend().waiting == 1)
    await until(lambda: running.gateway.in_flight == 2)
    (line,) = running.log_lines()
    assert (line["status"], line["ended_by"], line["upstream"], line["input_tokens"]) == (499, "client", None, None)
    assert running.metric('aiaas_aborts_total{phase="queued"}') == 1
    go.set()
    assert [(await client.answer()).status for client in (first, stayer)] == [200, 200]
    assert [post.json.get("user") for post in fake_vllm.posts] == [None, "stayer"]
    assert remaining(await first.post(CHAT)) == 7


async def test_client_that_leaves_as_it_is_granted_a_slot(fake_vllm: FakeVllm, gateway: Any) -> None:
    """The slot is not lost with the client."""
    running = await gateway(fake_vllm, backend=ONE_AT_ONCE)
    (endpoint,) = running.endpoints()
    endpoint.pool.inflight += 1  # somebody's request
    before = asyncio.all_tasks()
    await queued(running, CHAT)
    waiting = asyncio.all_tasks() - before
    assert waiting
    endpoint.give_back()
    for task in waiting:
        task.cancel()
    await running.quiet()
    assert (endpoint.pool.inflight, running.backend().waiting, fake_vllm.posts) == (0, 0, [])


async def test_nothing_is_kept_of_a_request_that_has_waited(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Otherwise its body would stay for as long as it could have waited."""
    before = [waiter for waiter in gc.get_objects() if isinstance(waiter, Waiter)]  # of other tests
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "queue": {"max_wait": "1h"}})
    first, go = await occupied(running, fake_vllm)
    (waiting,) = await queued(running, CHAT)
    go.set()
    assert [(await client.answer()).status for client in (first, waiting)] == [200, 200]
    await running.quiet()
    gc.collect()
    assert not [waiter for waiter in gc.get_objects() if isinstance(waiter, Waiter) and waiter not in before]


async def test_last_endpoint_goes_down_under_the_queue(fake_vllm: FakeVllm, gateway: Any) -> None:
    """503 at once instead of waiting for an endpoint that is down."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "health": {"unhealthy_after": 1}})
    _, go = await occupied(running, fake_vllm)
    waiting = await queued(running, CHAT, CHAT)
    running.endpoints()[0].report_failure("health check: refused")
    for client in waiting:
        got = await client.answer()
        assert (got.status, got.json["error"]["code"]) == (503, "no_healthy_backend")
    go.set()


async def test_queue_is_refused_while_draining(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A request that waits when the gateway begins to refuse can still go elsewhere; one at the backend goes on."""
    running = await gateway(fake_vllm, backend=ONE_AT_ONCE)
    first, go = await occupied(running, fake_vllm)
    waiting = await queued(running, CHAT, CHAT)
    running.gateway.refuse()
    for client in waiting:
        got = await client.answer()
        assert (got.status, got.json["error"]["code"]) == (503, "draining")
    assert (running.backend().waiting, len(fake_vllm.posts)) == (0, 1)
    go.set()
    assert (await first.answer()).status == 200
    assert [line["ended_by"] for line in running.log_lines()[:2]] == ["gateway", "gateway"]


async def test_retry_gives_its_slot_back_first(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Two requests that are both refused at first do not wait for each other's slot."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "max_retries": 1})
    go = asyncio.Event()
    fake_vllm.play(Wait(go), Send(error_answer(503, BUSY)))
    fake_vllm.play(Send(error_answer(503, BUSY)))
    fake_vllm.default = FINE
    first = await running.client()
    first.send(first.request(CHAT))
    await until(lambda: len(fake_vllm.posts) == 1)
    (second,) = await queued(running, CHAT)
    go.set()
    assert [(await client.answer()).status for client in (first, second)] == [200, 200]
    assert [line["retries"] for line in running.log_lines()] == [1, 1]
    assert (len(fake_vllm.posts), running.endpoints()[0].pool.inflight) == (4, 0)


async def test_max_wait_is_for_all_attempts_together(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A retry has the rest of the first attempt's time; then the engine's own refusal is the answer."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "max_retries": 1, "queue": {"max_wait": "1s"}})
    _, go = await occupied(running, fake_vllm)
    fake_vllm.play(Send(error_answer(503, BUSY)))
    refused, _ = await queued(running, CHAT, CHAT)
    fake_vllm.default = (Hang(),)
    await asyncio.sleep(0.5)
    go.set()
    got = await refused.answer()
    assert (got.status, got.json["error"]["code"], got.header("x-should-retry")) == (503, 503, "false")
    line = running.log_lines()[-1]
    assert line["retries"] == 0
    assert 0.99 < line["queue_seconds"] < 1.45  # a wait of its own would make it 1.5


async def test_deadline_while_a_retry_waits_is_504(fake_vllm: FakeVllm, gateway: Any) -> None:
    """And not the engine's refusal, which would say that there was still time."""
    fields = {**ONE_AT_ONCE, "max_retries": 1, "total_timeout": "1s"}
    running = await gateway(fake_vllm, backend=fields)
    (endpoint,) = running.endpoints()
    fake_vllm.play(Wait(go := asyncio.Event()), Send(error_answer(503, BUSY)))
    client = await running.client()
    client.send(client.request(CHAT))
    await until(lambda: len(fake_vllm.posts) == 1)
    endpoint.pool.inflight += 1  # somebody's request that does not end
    go.set()
    got = await client.answer()
    assert (got.status, got.json["error"]["code"], len(fake_vllm.posts)) == (504, "upstream_timeout", 1)


async def test_another_endpoint_before_the_queue(fake_vllms: Any, gateway: Any) -> None:
    """Nobody waits while some endpoint of the route has a slot, be it another backend's."""
    mine, other = await fake_vllms(), await fake_vllms()
    config = config_of([mine.url], ONE_AT_ONCE, {})
    config["backends"]["other"] = {"url": other.url, "models": ["m"], "max_inflight": 1}
    running = await gateway(config=config)
    first, go = await occupied(running, mine)
    assert (await (await running.client()).post(CHAT)).status == 200
    assert (len(mine.posts), len(other.posts)) == (1, 1)
    go.set()
    assert (await first.answer()).status == 200


async def two_backends(fake_vllms: Any, gateway: Any) -> tuple[Running, list[FakeVllm], list[Raw], list[asyncio.Event]]:
    """Two backends that serve `m` with one slot each, both taken; their clients, and the events that end those."""
    fakes = [await fake_vllms(), await fake_vllms()]
    config = config_of([fakes[0].url], {**ONE_AT_ONCE, "health": {"unhealthy_after": 1}}, {})
    config["backends"]["other"] = {**config["backends"]["vllm"], "urls": [fakes[1].url], "models": ["m"]}
    running = await gateway(config=config)
    clients, events = zip(*[await occupied(running, fake) for fake in fakes], strict=True)
    return running, fakes, list(clients), list(events)


@pytest.mark.parametrize("free", [0, 1])
async def test_slot_of_whichever_backend_is_free_first(fake_vllms: Any, gateway: Any, free: int) -> None:
    """A request waits for all backends of the route, and leaves every queue once one has served it."""
    running, fakes, clients, events = await two_backends(fake_vllms, gateway)
    (waiting,) = await queued(running, CHAT)
    events[free].set()
    assert (await waiting.answer()).status == 200
    assert len(fakes[free].posts) == 2
    assert running.log_lines()[-1]["backend"] == ("vllm", "other")[free]
    assert [running.backend(name).waiting for name in ("vllm", "other")] == [0, 0]
    events[1 - free].set()
    assert [(await client.answer()).status for client in clients] == [200, 200]


async def test_one_backend_goes_down_under_the_queue(fake_vllms: Any, gateway: Any) -> None:
    """A waiting request keeps its place at the other; with the last one it is refused."""
    running, fakes, _, events = await two_backends(fake_vllms, gateway)
    first, second = await queued(running, CHAT, CHAT)
    running.endpoints()[0].report_failure("health check: refused")
    await asyncio.sleep(0.01)
    assert [running.backend(name).waiting for name in ("vllm", "other")] == [0, 2]
    fakes[1].scripts.append((Hang(),))
    events[1].set()
    await until(lambda: len(fakes[1].posts) == 2)
    running.backend("other").endpoints[0].report_failure("health check: refused")
    assert (await second.answer()).json["error"]["code"] == "no_healthy_backend"
    first.reset()
    events[0].set()
    await running.quiet()
    assert [running.backend(name).endpoints[0].pool.inflight for name in ("vllm", "other")] == [0, 0]


async def test_backend_that_came_back_takes_over_the_queue(fake_vllms: Any, gateway: Any) -> None:
    """A request that waited at a backend that goes down looks again for one that is up by now."""
    running, fakes, clients, events = await two_backends(fake_vllms, gateway)
    events[1].set()
    assert (await clients[1].answer()).status == 200
    other = running.backend("other").endpoints[0]
    other.report_failure("reset")
    (waiting,) = await queued(running, CHAT)
    other.report_success(probe=True)
    running.endpoints()[0].report_failure("reset")
    assert (await waiting.answer()).status == 200
    assert (len(fakes[1].posts), other.pool.inflight) == (2, 0)
    events[0].set()


async def test_conversation_stays_where_its_prompt_is(fake_vllms: Any, gateway: Any) -> None:
    """Each turn of a conversation goes to one endpoint, and conversations spread."""
    fakes = [await fake_vllms() for _ in range(3)]
    running = await gateway(*fakes, backend={"balance": "auto"})
    client = await running.client()
    for number in range(20):
        messages = [{"role": "user", "content": f"question {number}"}]
        for _turn in range(3):
            await client.post({"model": "alias", "temperature": 0.5, "messages": messages})
            messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
    assert all(len(fake.posts) % 3 == 0 and fake.posts for fake in fakes)
    assert sum(len(fake.posts) for fake in fakes) == 60
