"""aiaas.proxy.request.upload_admission: what is refused before or while a form comes, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiaas.keys.model import KeyLimits
from aiaas.openai.paths import TRANSCRIPTIONS, TRANSLATIONS
from aiaas.proxy.request.upload import HELD_MOST
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.proxy.conftest import Got, KnownKey, Running, StartGateway, new_key
from tests.proxy.forms import AUDIO, LARGE, SMALL, TOLD, TYPE, error, file_first, form, model_first, post

ENDLESS = {"Content-Type": TYPE, "Content-Length": "20000000"}


@pytest.fixture
async def audio(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway before one fake that takes forms."""
    fake_vllm.default = (Send(json_answer(TOLD)),)
    return await gateway(fake_vllm, backend=AUDIO)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": ""}, 401, "missing_api_key"),
        ({"Authorization": "Bearer sk-wrong"}, 401, "invalid_api_key"),
        ({"Content-Type": "application/json"}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/mixed; boundary=a"}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data"}, 400, "invalid_request"),
        ({"Content-Type": TYPE + "; charset=utf-16"}, 400, "invalid_request"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Content-Length": str(32 * 1024**2 + 1)}, 413, "request_too_large"),
        ({"Expect": "200-ok"}, 417, "invalid_request"),
    ],
    ids=["no key", "wrong key", "JSON", "another multipart", "no boundary", "charset", "compressed", "large", "expect"],
)
async def test_form_is_refused_before_a_byte_of_it_is_read(
    audio: Running, fake_vllm: FakeVllm, headers: dict[str, str], status: int, code: str
) -> None:
    """The head says enough; a client that waits for `100 Continue` gets the refusal in its place."""
    client = await audio.client()
    client.send(client.request(None, path=TRANSCRIPTIONS, headers={"Expect": "100-continue", **ENDLESS, **headers}))
    got = await client.head()
    assert got.status == status
    assert got.header("connection") == "close"
    got.body = await client.reader.readexactly(int(got.header("content-length") or 0))
    assert got.json["error"]["code"] == code
    assert fake_vllm.connections == []


async def test_client_that_waits_is_told_to_continue(audio: Running, fake_vllm: FakeVllm) -> None:
    """As curl does before a large file."""
    client = await audio.client()
    body = model_first(LARGE)
    client.send(
        client.request(
            None,
            path=TRANSCRIPTIONS,
            headers={"Content-Type": TYPE, "Content-Length": str(len(body)), "Expect": "100-continue"},
        )
    )
    assert (await client.head()).status == 100
    client.send(body)
    assert (await client.answer()).json == TOLD
    assert fake_vllm.posts[0].body == body


@pytest.mark.parametrize("order", [model_first, file_first], ids=["model first", "file first"])
async def test_form_that_grows_too_large_ends(gateway: StartGateway, fake_vllm: FakeVllm, order: Any) -> None:
    """In chunks nothing is announced; the engine's request ends before the form does."""
    running = await gateway(fake_vllm, backend=AUDIO, server={"max_upload_size": "2MiB"})
    got = await post(await running.client(), order(LARGE), chunked=True)
    assert error(got) == (413, "request_too_large", None)
    assert "2097152" in got.json["error"]["message"]
    assert fake_vllm.posts == []
    async with asyncio.timeout(1):
        await fake_vllm.connections[0].gone.wait()


async def test_max_body_size_does_not_hold_for_forms(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A file may be larger than any JSON body."""
    running = await gateway(fake_vllm, backend=AUDIO, server={"max_body_size": "1KiB"})
    assert (await post(await running.client(), model_first(LARGE))).status == 200


FIELDS: list[tuple[bytes, str | None]] = [
    (form(("model", b"m"), ("model", b"m"), ("file", SMALL, "a")), "model"),
    (form(("model", b"m"), ("stream", b"true"), ("file", SMALL, "a"), ("stream", b"false")), "stream"),
    (form(("model", b"m"), ("Model", b"m"), ("file", SMALL, "a")), "Model"),
    (form(("model", b"m", "model.txt"), ("file", SMALL, "a")), "model"),
    (form(("model", b"m"), ("file", SMALL, "a"), ("file", SMALL, "b")), "file"),
    (form(("model", b"m"), ("file", b"text")), "file"),
    (form(("model", b"m"), ("other", SMALL, "a")), "other"),
    (form(("model", b"m"), ("vllm_xargs", b'{"a": 1}'), ("file", SMALL, "a")), "vllm_xargs"),
    (form(("model", b"m"), ("file", LARGE, "a"), ("vllm_xargs", b'{"a": 1}')), "vllm_xargs"),
    (form(("model", b"m"), ("n", b" 09 "), ("file", SMALL, "a")), "n"),
    (form(("model", b"\xff"), ("file", SMALL, "a")), "model"),
    (form(("model", b"m"), ("file", LARGE, "a"))[:-4], None),
]


@pytest.mark.parametrize(
    ("body", "param"),
    FIELDS,
    ids=["model twice", "stream twice", "model in capitals, too", "model as a file", "two files", "file as a field",
         "another file", "the engine's field", "the engine's field, late", "too many beams", "model not UTF-8",
         "cut short"],
)  # fmt: skip
async def test_form_that_is_not_allowed_is_refused(
    audio: Running, fake_vllm: FakeVllm, body: bytes, param: str | None
) -> None:
    """Early or late, no engine sees its end."""
    assert error(await post(await audio.client(), body)) == (400, "invalid_request", param)
    assert fake_vllm.posts == []


@pytest.mark.parametrize(
    "field",
    [("vllm_xargs", b"{}"), ("vllm_xargs", b""), ("n", b"8"), ("prompt", b"x" * 60_000), ("anything", b"1")],
    ids=["no arguments", "empty", "beams at the bound", "a long prompt", "unknown"],
)
async def test_form_with_harmless_fields_goes_on(audio: Running, fake_vllm: FakeVllm, field: tuple[str, bytes]) -> None:
    """Byte for byte."""
    body = model_first(SMALL, "m", field)
    assert (await post(await audio.client(), body, path=TRANSLATIONS)).status == 200
    assert fake_vllm.posts[0].body == body


async def test_unknown_field_is_refused_where_config_says_so(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """`request.unknown_fields` holds for forms."""
    running = await gateway(fake_vllm, backend=AUDIO, request={"unknown_fields": "reject"})
    known = model_first(SMALL, "m", ("timestamp_granularities[]", b"word"), ("timestamp_granularities[]", b"segment"))
    assert (await post(await running.client(), known)).status == 200
    got = await post(await running.client(), model_first(SMALL, "m", ("x", b"1")))
    assert error(got) == (400, "invalid_request", "x")


async def test_limits_hold_for_forms(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Requests a minute; a refused form costs nothing, and the answer says how the limits stand."""
    key = new_key("bob", limits=KeyLimits(requests_per_minute=2))
    running = await gateway(fake_vllm, backend=AUDIO, keys=(key,))

    async def ask(body: bytes) -> Got:
        return await post(await running.client(), body, key=key.text)

    assert error(await ask(model_first(SMALL, "no-such")))[0] == 404
    assert [(await ask(model_first(LARGE))).status for _ in range(2)] == [200, 200]
    refused = await ask(model_first(LARGE))
    assert error(refused)[:2] == (429, "rate_limit_exceeded")
    assert refused.header("retry-after") is not None
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    assert len(fake_vllm.posts) == 2


async def test_key_with_all_its_requests_under_way_is_refused(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A form counts for `max_concurrent` while it comes."""
    key = new_key("bob", limits=KeyLimits(max_concurrent=1))
    running = await gateway(fake_vllm, backend=AUDIO, keys=(key,))
    slow = await running.client()
    slow.send(slow.request(b"--", path=TRANSCRIPTIONS, headers=ENDLESS, key=key.text))
    async with asyncio.timeout(1):
        while running.gateway.in_flight == 0:
            await asyncio.sleep(0)
    got = await post(await running.client(), model_first(), key=key.text)
    assert error(got)[:2] == (429, "concurrency_limit_exceeded")


@pytest.mark.parametrize(
    "key",
    [
        new_key("bob", limits=KeyLimits(tokens_per_minute=100)),
        new_key("app", users_header="x-user", user_limits=KeyLimits(tokens_per_minute=100)),
    ],
    ids=["of the key", "of its user"],
)
async def test_guess_about_a_length_never_refuses_a_form_for_good(
    gateway: StartGateway, fake_vllm: FakeVllm, key: KnownKey
) -> None:
    """3 MiB are guessed at 20,000 tokens; a bucket of 100 takes all that it has."""
    fake_vllm.default = (Send(json_answer({**TOLD, "usage": {"type": "duration", "seconds": 0}})),)
    running = await gateway(fake_vllm, backend=AUDIO, keys=(key,))
    got = await post(await running.client(), model_first(LARGE), key=key.text)
    assert got.status == 200
    await running.quiet()
    assert running.log_lines()[-1]["input_tokens"] == 0


async def test_held_bytes_of_a_form_are_given_back(audio: Running) -> None:
    """At its end nothing is counted any more."""
    for body in (model_first(SMALL), file_first(LARGE), model_first(LARGE, "no-such"), file_first(LARGE, "no-such")):
        await post(await audio.client(), body)
        await audio.quiet()
        assert audio.gateway.bodies.held == 0
        assert repr(audio.gateway.bodies).endswith(" 0 keys>")
    assert len(LARGE) > HELD_MOST
