"""aiaas.proxy.request.admission: whose limits hold, what is reserved and what is charged, over the wire."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from aiaas.keys.format import make_key
from aiaas.keys.model import KeyLimits
from aiaas.keys.throttle import BURST
from tests.fakes.vllm import (
    DONE,
    STREAM_HEAD,
    FakeVllm,
    Hang,
    Reset,
    Send,
    chunk,
    error_answer,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.conftest import CHAT, Got, KnownKey, Running, StartGateway, new_key, slow_key

BODY = {"model": "m", "messages": []}
AT_ONCE = int(os.environ.get("AIAAS_TEST_KEYS", "100"))  # keys that ask at once after a start; by hand 1000
STRANGER = new_key("stranger")
WRONG = make_key("sk-", secrets.token_bytes, STRANGER.record.id).text
STREAM = BODY | {"stream": True}
PLAN: dict[str, Any] = {"backends": {"a": {"url": "http://a:1", "models": ["m"]}}}


async def left(running: Running) -> tuple[str | None, str | None]:
    """The rest of requests and tokens, seen through a request that costs nothing."""
    await running.quiet()
    client = await running.client()
    got = await client.post(b"{")
    return got.header("x-ratelimit-remaining-requests"), got.header("x-ratelimit-remaining-tokens")


LIMITS = {"requests_per_minute": 10, "tokens_per_minute": 1000}
ESTIMATE = 8  # tokens, of BODY's 30 bytes
LONGER = 22  # of STREAM with the usage option spliced in


@pytest.mark.parametrize(
    ("body", "script", "cost"),
    [
        (BODY, [Send(json_answer({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}))], (1, 7)),
        (STREAM, [Send(stream(token_event(), usage_event(18, 5), DONE))], (1, 23)),
        (BODY | {"max_tokens": 500}, [Send(json_answer({}))], (1, ESTIMATE + 5 + 500)),
        (BODY, [Send(error_answer(400, "no", "BadRequestError"))], (1, 0)),
        (BODY | {"max_tokens": 500}, [Send(error_answer(422, "no", "BadRequestError"))], (1, 0)),
        (STREAM, [Send(STREAM_HEAD + chunk(token_event()) + chunk(token_event())), Reset()], (1, LONGER + 2)),
        (BODY, [Send(json_answer({"x": "y" * 50})[:-9]), Reset()], (1, ESTIMATE + 13)),
        (BODY, [Reset()], (1, 0)),
        (BODY, [Send(error_answer(401, "whose key?"))], (1, 0)),
    ],
    ids=[
        "usage", "usage of a stream", "no usage", "vLLM's 400", "vLLM's 422 with a large reservation", "cut stream",
        "cut answer", "reset before any byte", "our own key refused",
    ],
)  # fmt: skip
async def test_request_is_charged_its_use(
    gateway: StartGateway, fake_vllm: FakeVllm, body: dict[str, Any], script: list[Any], cost: tuple[int, int]
) -> None:
    """The reservation is replaced by what was used."""
    running = await gateway(fake_vllm, rate_limit=LIMITS, backend={"max_retries": 0})
    fake_vllm.play(*script)
    client = await running.client()
    started = time.monotonic()
    await client.post(body)
    requests, tokens = await left(running)
    refilled = (time.monotonic() - started) * LIMITS["tokens_per_minute"] / 60
    assert requests == str(10 - cost[0])
    assert 0 <= int(tokens or 0) - (1000 - cost[1]) <= refilled + 1


@pytest.mark.parametrize("phase", ["waiting", "streaming"])
async def test_a_client_that_leaves_pays_for_what_the_engine_did(
    gateway: StartGateway, fake_vllm: FakeVllm, phase: str
) -> None:
    """Its input, and the events that it got: leaving early does not get round the limit."""
    running = await gateway(fake_vllm, rate_limit=LIMITS)
    fake_vllm.play(*([Send(STREAM_HEAD + chunk(token_event()) * 3)] if phase == "streaming" else []), Hang())
    client = await running.client()
    started = time.monotonic()
    client.send(client.request(STREAM))
    if phase == "streaming":
        await client.head()
    else:
        while not fake_vllm.posts:
            await asyncio.sleep(0.005)
    client.reset()
    requests, tokens = await left(running)
    refilled = (time.monotonic() - started) * LIMITS["tokens_per_minute"] / 60
    assert requests == "9"
    assert 0 <= int(tokens or 0) - (1000 - LONGER - (3 if phase == "streaming" else 0)) <= refilled + 1


async def test_a_reservation_counts_while_the_request_runs(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Output bound times choices, and the input."""
    running = await gateway(fake_vllm, rate_limit=LIMITS)
    fake_vllm.play(Hang())
    client = await running.client()
    body = BODY | {"max_tokens": 100, "n": 3}
    client.send(client.request(body))
    while not fake_vllm.posts:
        await asyncio.sleep(0.005)
    other = await running.client()
    got = await other.post(b"{")
    estimate = -(-len(fake_vllm.posts[0].body) // 4)
    assert got.header("x-ratelimit-remaining-tokens") == str(1000 - 300 - estimate)


async def test_eleven_at_once_give_one_429(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """With 10 a minute and a burst of 10, as the plan's test has it."""
    running = await gateway(fake_vllm, rate_limit={"requests_per_minute": 10})
    clients = [await running.client() for _ in range(11)]
    answers = await asyncio.gather(*[client.post(BODY) for client in clients])
    assert sorted(got.status for got in answers) == [200] * 10 + [429]


async def test_a_slot_is_one_request_at_a_time(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The refusal says so, with a second to wait; each key has its own slot."""
    one = new_key("one", limits=KeyLimits(max_concurrent=1))
    running = await gateway(fake_vllm, keys=(one,))
    fake_vllm.play(Hang())
    client = await running.client()
    client.send(client.request(BODY, key=one.text))
    while not fake_vllm.posts:
        await asyncio.sleep(0.005)
    got = await (await running.client()).post(BODY, key=one.text)
    assert (got.status, got.json["error"]["code"]) == (429, "concurrency_limit_exceeded")
    assert got.header("retry-after") == "1"
    assert (await (await running.client()).post(BODY)).status == 200
    client.reset()
    while running.gateway.in_flight:
        await asyncio.sleep(0.005)
    assert (await (await running.client()).post(BODY, key=one.text)).status == 200


async def test_a_models_bound_is_spliced_into_what_goes_upstream(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Also for an alias; `clamp` lowers what is too much."""
    model = {"name": "m", "aliases": ["alias"], "max_output_tokens": 5, "on_over_limit": "clamp"}
    running = await gateway(fake_vllm, backend={"models": [model]})
    client = await running.client()
    await client.post(b'{"model":"alias"}')
    await client.post(b'{"model":"m","max_tokens":99}')
    assert [post.body for post in fake_vllm.posts] == [b'{"max_tokens":5,"model":"m"}', b'{"model":"m","max_tokens":5}']


async def test_a_bound_in_a_text_is_clamped_as_vllm_reads_it(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A value within the model's bound goes on as it was written."""
    model = {"name": "m", "max_output_tokens": 50, "on_over_limit": "clamp"}
    client = await (await gateway(fake_vllm, backend={"models": [model]})).client()
    for sent in (
        b'{"model":"m","max_tokens":"50"}',
        b'{"model":"m","max_tokens":50.0}',
        b'{"model":"m","max_tokens":"5_1"}',
    ):
        assert (await client.post(sent)).status == 200
    assert [post.body for post in fake_vllm.posts] == [
        b'{"model":"m","max_tokens":"50"}',
        b'{"model":"m","max_tokens":50.0}',
        b'{"model":"m","max_tokens":50}',
    ]


async def test_a_bound_in_a_text_is_reserved_as_its_number(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A key with 100 tokens a minute has no room for 200, however they are written."""
    poor = new_key("poor", limits=KeyLimits(tokens_per_minute=100))
    client = await (await gateway(fake_vllm, keys=(poor,))).client()
    for written in ('"200"', "200.0", '" +2_00.0 "'):
        got = await client.post(f'{{"model":"m","max_tokens":{written}}}'.encode(), key=poor.text)
        assert (got.status, got.json["error"]["param"]) == (400, "max_tokens")
    assert not fake_vllm.posts


@pytest.mark.parametrize("asked", [b"1", b'"on"', b'"TRUE"', b"1.0"])
async def test_a_stream_is_one_however_it_is_asked_for(
    gateway: StartGateway, fake_vllm: FakeVllm, asked: bytes
) -> None:
    """Its usage is asked for and counted, and the log calls it a stream."""
    running = await gateway(fake_vllm)
    client = await running.client()
    fake_vllm.play(Send(stream(*(token_event("a") for _ in range(3)), usage_event(2, 3), DONE)))
    got = await client.post(b'{"model":"m","stream":%b}' % asked)
    assert fake_vllm.posts[0].body == b'{"stream_options":{"include_usage":true},"model":"m","stream":%b}' % asked
    assert b'"usage"' not in got.body
    line = running.log_lines()[-1]
    assert (line["stream"], line["output_tokens"]) == (True, 3)


@pytest.mark.parametrize(
    ("encoding", "sent"), [("utf-8-sig", "utf-8"), ("utf-16", "utf-8"), ("utf-16-be", "utf-8"), ("utf-32-le", "utf-8")]
)
async def test_a_body_goes_on_in_utf8(gateway: StartGateway, fake_vllm: FakeVllm, encoding: str, sent: str) -> None:
    """Without its byte order mark, and with the model's name replaced."""
    client = await (await gateway(fake_vllm)).client()
    body = '{"model":"alias","messages":[{"role":"user","content":"\u4f60\u597d"}]}'
    assert (await client.post(body.encode(encoding))).status == 200
    assert fake_vllm.posts[0].body == body.replace("alias", "m").encode(sent)


async def test_a_body_that_grows_in_utf8_counts_with_what_it_takes(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Chinese takes half as much again as in UTF-16."""
    running = await gateway(fake_vllm)
    client = await running.client()
    body = '{"model":"m","pad":"' + "\u4f60" * 100_000 + '"}'
    fake_vllm.play(Hang())
    client.send(client.request(body.encode("utf-16-le")))
    async with asyncio.timeout(10):
        while not fake_vllm.posts:
            await asyncio.sleep(0.005)
    assert running.gateway.bodies.held == len(body.encode())
    client.reset()
    async with asyncio.timeout(10):
        while running.gateway.in_flight:
            await asyncio.sleep(0.005)
    assert running.gateway.bodies.held == 0


async def test_nothing_secret_is_ever_written(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """No key, prompt, answer or header of the client in the log or in the metrics, whatever happens."""
    running = await gateway(fake_vllm, backend={"max_retries": 0})
    secret = "S3CRET"
    bodies: list[Any] = [
        BODY | {"messages": [{"role": "user", "content": secret}]},
        BODY | {"model": secret},
        BODY | {"n": secret},
        f"{{{secret}".encode(),
        STREAM | {"user": secret},
    ]
    fake_vllm.play(Send(json_answer({"choices": [{"message": {"content": secret}}]})))
    for body in bodies:
        client = await running.client()
        await client.post(body, headers={"X-Other": secret, "Cookie": secret, "Accept": secret})
        fake_vllm.play(Send(STREAM_HEAD + chunk(token_event(secret))), Reset())
    for key in (f"sk-{secret}", secret):
        client = await running.client()
        await client.post(BODY, key=key)
    client = await running.client()
    client.send(f"POST / HTTP/1.1\r\n{secret}\r\n\r\n".encode())
    await client.answer()
    await running.quiet()
    running.gateway.log.flush()
    written = b"".join(running.lines).decode() + running.metrics.expose().decode()
    assert secret not in written
    assert running.key not in written
    assert len(running.log_lines()) == len(bodies) + 2


async def test_wrong_keys_hold_up_only_new_keys_of_their_own_address(
    gateway: StartGateway, fake_vllm: FakeVllm, known_key: KnownKey
) -> None:
    """Behind a trusted proxy that is the client's. Keys of ours, and those used before, are served from there."""
    attacked, new, ours = slow_key("attacked"), slow_key("bob"), new_key("ours")
    running = await gateway(fake_vllm, keys=(attacked, new, ours), server={"trusted_proxies": ["127.0.0.0/8"]})
    fake_vllm.play(*[Send(json_answer({}))] * 4)
    client = await running.client()

    async def post(key: str, address: str) -> Got:
        return await client.post(BODY, key=key, headers={"X-Forwarded-For": f"203.0.113.9, {address}"})

    attacker, neighbour = "198.51.100.1", "198.51.100.2"
    assert (await post(known_key.text, attacker)).status == 200
    wrong = [make_key("sk-", secrets.token_bytes, attacked.record.id).text for _ in range(BURST + 1)]
    assert [(await post(key, attacker)).status for key in wrong] == [401] * BURST + [429]
    refused = await post(new.text, attacker)
    assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_wrong_keys")
    assert refused.header("retry-after") == "10"
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert (await post(known_key.text, attacker)).status == 200
    assert (await post(ours.text, attacker)).status == 200
    assert (await post(new.text, neighbour)).status == 200
    assert running.metric('aiaas_refused_total{limit="wrong_keys"}') == 2


REVOKED, EXPIRED, SLOW = new_key("revoked"), new_key("expired"), slow_key("slow")
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
@pytest.mark.parametrize(
    ("key", "code", "reason", "key_id"),
    [
        (None, "missing_api_key", "missing", None),
        ("sk-junk", "invalid_api_key", "malformed", None),
        (STRANGER.text, "invalid_api_key", "unknown_id", STRANGER.record.id),
        (WRONG, "invalid_api_key", "wrong_secret", STRANGER.record.id),
        (REVOKED.text, "invalid_api_key", "revoked", REVOKED.record.id),
        (EXPIRED.text, "invalid_api_key", "expired", EXPIRED.record.id),
    ],
    ids=["missing", "malformed", "unknown id", "wrong secret", "revoked", "expired"],
)
async def test_a_401_is_explained_in_the_log_only(
    gateway: StartGateway, path: str, key: str | None, code: str, reason: str, key_id: str | None
) -> None:
    """All refused clients get the same answer, not to be retried; the log tells the operator which key, and why."""
    known = [replace(REVOKED.record, disabled=True), replace(EXPIRED.record, expires=LONG_AGO)]
    if reason == "wrong_secret":
        known.append(STRANGER.record)
    running = await gateway("http://127.0.0.1:9", keys=tuple(KnownKey("", record) for record in known))
    client = await running.client()
    headers = {} if key else {"Authorization": ""}
    got = await (
        client.post(BODY, key=key, headers=headers) if path == CHAT else client.get(path, key=key, headers=headers)
    )
    assert (got.status, got.json["error"]["code"]) == (401, code)
    assert got.header("x-should-retry") == "false"
    line = running.log_lines("inference_request" if path == CHAT else "request")[-1]
    assert (line["reason"], line["key_id"], line["user"]) == (reason, key_id, None)
    assert key is None or key not in b"".join(running.lines).decode()


async def test_invalid_keys_have_no_series(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A client that makes up key ids must not fill Prometheus with them."""
    running = await gateway(fake_vllm)
    client = await running.client()
    for _ in range(3):
        assert (await client.post(BODY, key=make_key("sk-", secrets.token_bytes).text)).status == 401
    assert b"aiaas_key_requests_total{" not in running.metrics.expose()
    assert running.log_lines()[-1]["key_id"] is not None


async def test_every_generated_key_is_served_at_once_after_a_start(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A process that has just started knows all its keys, also while wrong keys wait for their slow hashes."""
    attacked = slow_key("attacked", rounds=200_000)
    keys = tuple(new_key(f"user-{number}") for number in range(AT_ONCE))
    patient = {"connect_timeout": "30s", "timeout": "30s"}  # gateway, vLLM and clients share one thread here
    running = await gateway(fake_vllm, keys=(attacked, *keys), backend=patient)
    fake_vllm.default = (Send(json_answer({"id": 1})),)
    wrong = [make_key("sk-", secrets.token_bytes, attacked.record.id).text for _ in range(8)]
    texts = [*wrong, *(key.text for key in keys)]
    clients = [await running.client() for _ in texts]
    for client, text in zip(clients, texts, strict=True):
        client.send(client.request(BODY, key=text))
    answers = [(await client.answer()).status for client in clients]
    assert Counter(answers[len(wrong) :]) == {200: AT_ONCE}


async def test_ipv6_client_without_keys_has_its_networks_limits(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """It has 2**64 addresses, and takes another one for each request as it likes; its neighbours have limits too."""
    running = await gateway(
        fake_vllm,
        auth={"enabled": False},
        server={"trusted_proxies": ["127.0.0.0/8"]},
        rate_limit={"requests_per_minute": 1},
    )
    client = await running.client()
    fake_vllm.default = (Send(json_answer({"id": 1})),)
    statuses = [
        (await client.post({"model": "m", "messages": []}, headers={"X-Forwarded-For": address})).status
        for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "192.0.2.1", "192.0.2.2", "192.0.2.1")
    ]
    assert statuses == [200, 429, 200, 200, 200, 429]


EVERY_EVENT = {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize("size", [0, 200_000], ids=["small", "large"])
@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"include_usage": False, "continuous_usage_stats": True, "x": 1},
         {"include_usage": True, "continuous_usage_stats": False, "x": 1}),
        ({}, {"include_usage": True}),
        (None, {"include_usage": True}),
        (EVERY_EVENT, EVERY_EVENT),
    ],
    ids=["declined", "empty", "null", "asked"],
)  # fmt: skip
async def test_own_stream_options_stay(
    fake_vllm: FakeVllm, gateway: StartGateway, options: Any, sent: Any, size: int
) -> None:
    """Only what has to change does."""
    fake_vllm.play(Send(stream(token_event(), usage_event(), DONE)))
    running = await gateway(fake_vllm)
    body = STREAM | {"stream_options": options, "user": "u" * size}
    await (await running.client()).post(body)
    assert fake_vllm.posts[0].json == body | {"stream_options": sent}


async def test_engine_that_refuses_stream_options_is_not_asked(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Its requests go as they came, its tokens are estimated, and what it tells unasked is the client's."""
    fake_vllm.play(Send(stream(token_event(), token_event(), DONE)))
    fake_vllm.play(Send(stream(token_event(), usage_event(), DONE)))
    running = await gateway(fake_vllm, backend={"ask_for_usage": False})
    client = await running.client()
    got = [await client.post(STREAM) for _ in range(2)]
    assert [post.json for post in fake_vllm.posts] == [STREAM, STREAM]
    assert [answer.body for answer in got] == [token_event() * 2 + DONE, token_event() + usage_event() + DONE]
    assert [line["output_tokens"] for line in running.log_lines()] == [2, 5]
    assert running.metric('aiaas_tokens_estimated_total{model="m",type="output"}') == 2
    await client.post(STREAM | {"stream_options": {"include_usage": True}})
    assert fake_vllm.posts[-1].json["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("asked_first", [True, False], ids=["the first is asked", "the second is asked"])
async def test_fallback_is_asked_for_usage_by_its_own_setting(
    fake_vllms: Callable[[], Awaitable[FakeVllm]], gateway: StartGateway, asked_first: bool
) -> None:
    """Each target gets its own body, and its own answer is relayed as that."""
    first, second = await fake_vllms(), await fake_vllms()
    backend = {"endpoints": [CHAT], "models": ["m"], "max_retries": 2}
    config = {
        "backends": {
            "a": backend | {"url": first.url, "ask_for_usage": asked_first},
            "b": backend | {"url": second.url, "models": ["n", "m"], "ask_for_usage": not asked_first},
        }
    }  # fmt: skip
    first.play(Send(error_answer(503, "busy")))
    whole = [token_event(), usage_event(), DONE]
    second.play(Send(stream(*whole)))
    running = await gateway(config=config)
    got = await (await running.client()).post(STREAM)
    asked = {"stream_options": {"include_usage": True}}
    assert first.posts[0].json == STREAM | (asked if asked_first else {})
    assert second.posts[0].json == STREAM | {"model": "n"} | ({} if asked_first else asked)
    assert got.body == b"".join(whole if asked_first else [whole[0], DONE])
