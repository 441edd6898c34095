"""aiaas.proxy.request.upload: forms with a file pass over real sockets, to a fake that keeps the bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiaas.openai.paths import TRANSCRIPTIONS
from aiaas.proxy.request.upload import HELD_MOST
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.proxy.conftest import Running, StartFake, StartGateway, new_key
from tests.proxy.forms import AUDIO, LARGE, SMALL, TOLD, TYPE, error, file_first, form, model_first, post


@pytest.fixture
async def audio(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway before one fake that takes forms."""
    fake_vllm.default = (Send(json_answer(TOLD)),)
    return await gateway(fake_vllm, backend=AUDIO)


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["an empty file", "a small file", "a large file"])
@pytest.mark.parametrize("order", [model_first, file_first], ids=["model first", "file first"])
async def test_form_arrives_byte_for_byte(
    audio: Running, fake_vllm: FakeVllm, order: Any, content: bytes, chunked: bool
) -> None:
    """Whatever the order, the size and the framing."""
    client = await audio.client()
    body = order(content)
    got = await post(client, body, chunked=chunked)
    assert (got.status, got.json) == (200, TOLD)
    [received] = fake_vllm.posts
    assert received.body == body
    assert received.path == TRANSCRIPTIONS
    assert received.headers["content-type"] == TYPE
    assert (await post(client, body)).status == 200  # the connection is good for another request


@pytest.mark.parametrize("order", [model_first, file_first], ids=["model first", "file first"])
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
async def test_alias_is_replaced_and_nothing_else(
    audio: Running, fake_vllm: FakeVllm, order: Any, content: bytes
) -> None:
    """With a length that fits."""
    got = await post(await audio.client(), order(content, "alias"))
    assert got.status == 200
    assert fake_vllm.posts[0].body == order(content, "m")


async def test_large_form_with_model_first_keeps_a_length(audio: Running, fake_vllm: FakeVllm) -> None:
    """It is the client's, less what the alias was longer."""
    body = model_first(LARGE, "alias")
    assert (await post(await audio.client(), body)).status == 200
    assert fake_vllm.posts[0].headers["content-length"] == str(len(body) - len("alias") + len("m"))


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("no-such", 404, "model_not_found"), ("other", 404, "model_not_found"), ("", 400, "invalid_request")],
    ids=["unknown", "not for this key", "empty"],
)
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("order", [model_first, file_first], ids=["model first", "file first"])
async def test_model_that_is_not_allowed_reaches_no_engine(
    gateway: StartGateway, fake_vllm: FakeVllm, order: Any, content: bytes, model: str, status: int, code: str
) -> None:
    """Not even behind a large file: the form's end is not sent, and the connection is."""
    key = new_key("bob", models=("m",))
    running = await gateway(fake_vllm, backend={**AUDIO, "models": [{"name": "m"}, {"name": "other"}]}, keys=(key,))
    got = await post(await running.client(), order(content, model), key=key.text)
    assert error(got) == (status, code, "model")
    await running.quiet()
    for connection in fake_vllm.connections:
        async with asyncio.timeout(1):
            await connection.gone.wait()
    assert fake_vllm.posts == []
    assert (order is file_first and content is LARGE) == bool(fake_vllm.connections)


async def test_form_without_model_never_ends_at_the_engine(audio: Running, fake_vllm: FakeVllm) -> None:
    """vLLM would take its own default, which the key may not use."""
    got = await post(await audio.client(), form(("file", LARGE, "a.wav")))
    assert error(got) == (400, "invalid_request", "model")
    assert fake_vllm.posts == []


async def two_backends(gateway: StartGateway, fake_vllms: StartFake, **more: Any) -> tuple[Running, FakeVllm, FakeVllm]:
    """Two fakes, one with the model `one`, one with `two`."""
    one, two = await fake_vllms(), await fake_vllms()
    backends = {
        "first": {"url": one.url, "models": ["one"], **AUDIO},
        "second": {"url": two.url, "models": ["two"], **AUDIO},
    }
    return await gateway(config={"backends": backends, "rate_limit": {"enabled": False}}, **more), one, two


async def test_large_file_before_the_model_needs_one_backend(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """Nobody knows where to send it: it is refused before any backend has a byte."""
    running, one, two = await two_backends(gateway, fake_vllms)
    got = await post(await running.client(), file_first(LARGE, "two"))
    assert error(got) == (400, "invalid_request", "model")
    assert str(HELD_MOST) in got.json["error"]["message"]
    assert one.connections == two.connections == []


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["held", "passed on"])
async def test_model_chooses_the_backend_of_a_form(
    gateway: StartGateway, fake_vllms: StartFake, content: bytes
) -> None:
    """Where it comes in time: before the file, or in a form that is held."""
    running, one, two = await two_backends(gateway, fake_vllms)
    order = file_first if content is SMALL else model_first
    assert (await post(await running.client(), order(content, "two"))).status == 200
    assert (len(one.posts), len(two.posts)) == (0, 1)


async def test_key_with_models_of_one_backend_sends_file_first(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """Other backends do not matter to it."""
    key = new_key("bob", models=("two",))
    running, one, two = await two_backends(gateway, fake_vllms, keys=(key,))
    assert (await post(await running.client(), file_first(LARGE, "two"), key=key.text)).status == 200
    assert (len(one.posts), len(two.posts)) == (0, 1)
    got = await post(await running.client(), file_first(LARGE, "one"), key=key.text)
    assert error(got) == (404, "model_not_found", "model")
    assert (len(one.posts), len(two.posts)) == (0, 1)


def bounded(over: str) -> dict[str, Any]:
    """A model whose answers have 100 tokens at the most."""
    return {**AUDIO, "models": [{"name": "m", "max_output_tokens": 100, "on_over_limit": over}]}


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (
            model_first(SMALL, "m", ("max_completion_tokens", b"7")),
            model_first(SMALL, "m", ("max_completion_tokens", b"7")),
        ),
        (
            model_first(SMALL, "m", ("max_completion_tokens", b"101")),
            model_first(SMALL, "m", ("max_completion_tokens", b"100")),
        ),
        (
            model_first(LARGE, "m", ("max_completion_tokens", b"")),
            model_first(LARGE, "m", ("max_completion_tokens", b"100")),
        ),
        (model_first(SMALL), form(("model", b"m"), ("file", SMALL, "a.wav"), ("max_completion_tokens", b"100"))),
        (model_first(LARGE), form(("model", b"m"), ("file", LARGE, "a.wav"), ("max_completion_tokens", b"100"))),
    ],
    ids=["below", "above", "empty", "none, small form", "none, large form"],
)
async def test_output_bound_is_written_into_the_form(
    gateway: StartGateway, fake_vllm: FakeVllm, sent: bytes, arrives: bytes
) -> None:
    """As into other bodies, at the form's end where it has none."""
    running = await gateway(fake_vllm, backend=bounded("clamp"))
    assert (await post(await running.client(), sent)).status == 200
    assert fake_vllm.posts[0].body == arrives


@pytest.mark.parametrize(
    ("over", "body"),
    [
        ("reject", model_first(SMALL, "m", ("max_completion_tokens", b"101"))),
        ("reject", file_first(LARGE, "m", ("max_completion_tokens", b"101"))),
        ("clamp", form(("max_completion_tokens", b"101"), ("file", LARGE, "a.wav"), ("model", b"m"))),
    ],
    ids=["small", "behind the file", "sent before the model was known"],
)
async def test_output_above_the_bound_is_refused(
    gateway: StartGateway, fake_vllm: FakeVllm, over: str, body: bytes
) -> None:
    """Also where it could have been changed, but has gone on already."""
    running = await gateway(fake_vllm, backend=bounded(over))
    got = await post(await running.client(), body)
    assert error(got) == (400, "invalid_request", "max_completion_tokens")
    assert fake_vllm.posts == []


async def test_field_that_the_operator_strips_is_left_out(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Wherever it stands, also as the form's first."""
    running = await gateway(fake_vllm, backend=AUDIO, request={"fields": {"seed": "strip", "top_k": "strip"}})
    body = form(("seed", b"1"), ("model", b"m"), ("file", LARGE, "a.wav"), ("top_k", b"3"))
    assert (await post(await running.client(), body)).status == 200
    assert fake_vllm.posts[0].body == model_first(LARGE)


async def test_media_type_goes_on_as_it_came(audio: Running, fake_vllm: FakeVllm) -> None:
    """With the boundary in quotes, too."""
    quoted = TYPE.replace("boundary=", 'boundary="') + '"'
    headers = {"Content-Type": quoted}
    assert (await post(await audio.client(), model_first(), headers=headers)).status == 200
    assert fake_vllm.posts[0].headers["content-type"] == quoted
