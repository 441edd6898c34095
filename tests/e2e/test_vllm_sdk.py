"""The official OpenAI SDK through the gateway, against the simulator and a real vLLM: answers, streams, every error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.processes import ALIAS, MODEL, Engine, Gateway, eventually, keys
from tests.ports import free_port

HELLO = [{"role": "user", "content": "Say hello."}]
LONG = {"max_tokens": 1900, "temperature": 0, "extra_body": {"ignore_eos": True}}  # 4 s or more on either
WITHIN = 3.0  # seconds until nothing runs: one, and more for a machine that has other work; LONG takes longer still


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    """The SDK as a user sets it up, but for its own retries, which would hide our errors."""
    with OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("model", [MODEL, ALIAS], ids=["the served name", "an alias"])
def test_a_chat_completion(client, model):
    """An answer of exactly as many tokens as asked for, with usage."""
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_a_streamed_chat_completion_with_usage(client):
    """The role first, then text, the finish reason, and the usage that was asked for."""
    stream = client.chat.completions.create(
        model=ALIAS, messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "length"
    assert events[-1].usage.completion_tokens == 5


def test_a_stream_that_asked_for_no_usage_has_none(client):
    """The usage that aiaas asks vLLM for is not seen by the client."""
    stream = client.chat.completions.create(model=ALIAS, messages=HELLO, max_tokens=3, stream=True)
    events = list(stream)
    assert all(event.choices for event in events)
    assert all(event.usage is None for event in events)


def test_completions_whole_and_streamed(client):
    """The older endpoint; both give the same text."""
    ask = {"model": ALIAS, "prompt": "def main(", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**ask).choices[0].text
    streamed = "".join(event.choices[0].text for event in client.completions.create(**ask, stream=True))
    assert whole == streamed != ""


def test_models_and_model_by_id(client):
    """Aliases included, answered by the gateway; vLLM itself has no model by id."""
    assert [model.id for model in client.models.list()] == [MODEL, ALIAS]
    assert client.models.retrieve(ALIAS).id == ALIAS
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


async def test_32_streams_at_once(gateway, engine):
    """All of them end whole, and afterwards nothing is in flight, in the engine and in the gateway."""
    before = gateway.metric("tokens_processed_total", type="output")

    async def one(client: AsyncOpenAI) -> int:
        stream = await client.chat.completions.create(
            model=ALIAS,
            messages=HELLO,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        *events, usage = [event async for event in stream]
        assert events[-1].choices[0].finish_reason == "length"
        return usage.usage.completion_tokens

    async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client:
        # By its own count: a busy vLLM puts as many tokens into an event as it has.
        assert await asyncio.gather(*(one(client) for _ in range(32))) == [40] * 32
    eventually(lambda: engine.metric("vllm:num_requests_running") == 0, WITHIN)
    eventually(lambda: gateway.metric("aiaas_requests_in_flight") == 0, WITHIN)
    assert gateway.metric("tokens_processed_total", type="output") - before == 32 * 40


def chat(client: OpenAI, **more) -> object:
    return client.chat.completions.create(**{"model": ALIAS, "messages": HELLO, "max_tokens": 1} | more)


@pytest.mark.parametrize("key", ["sk-wrong", "nonsense", "sk-" + "a" * 40], ids=["short", "no prefix", "long"])
def test_a_wrong_key_is_an_authentication_error(gateway, key):
    """401 invalid_api_key."""
    with OpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            chat(client)
    assert caught.value.code == "invalid_api_key"
    assert key not in caught.value.message


def test_an_unknown_model_is_a_not_found_error(client):
    """404 model_not_found, streamed or not, before vLLM is asked."""
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as caught:
            chat(client, model="nope", stream=stream)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"max_tokens": 0}, id="a bad value, which vLLM refuses"),
        pytest.param({"messages": "hello"}, id="a wrong type"),
        pytest.param({"messages": [{"role": "user", "content": "word " * 3000}]}, id="a prompt over the context"),
        pytest.param({"n": 100}, id="more choices than the gateway lets through"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_bad_request_is_a_bad_request_error(client, more, stream):
    """vLLM's own words, or ours where we check; a real 400, also for a stream."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, stream=stream, **more)
    assert len(caught.value.message) > 20


def test_too_many_requests_are_a_rate_limit_error(gateway):
    """429 with Retry-After, and a key of its own does not spend another's."""
    key = keys(gateway.folder, "create", "slow", "--rpm", "1")
    with OpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0) as client:
        eventually(lambda: is_known(client), 3)
        chat(client)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def is_known(client: OpenAI) -> bool:
    """Whether the gateway has seen the key file's change; listing models is not limited."""
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def test_client_timeout_frees_the_engine(gateway, engine):
    """APITimeoutError is the SDK's own; the engine stops generating long before the answer's end."""
    with OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            chat(client, **LONG)
        eventually(lambda: engine.metric("vllm:num_requests_running") == 0, WITHIN)
        eventually(lambda: gateway.metric("aiaas_requests_in_flight") == 0, WITHIN)


def test_an_engine_silent_for_too_long_is_a_504(engine, start_gateway):
    """The SDK raises InternalServerError with our code, in time, and the engine is freed."""
    with start_gateway({"url": engine.url, "timeout": "400ms", "max_retries": 0}) as gateway:
        with OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client:
            started = time.monotonic()
            with pytest.raises(openai.InternalServerError) as caught:
                chat(client, **LONG)
            assert time.monotonic() - started < WITHIN
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
        eventually(lambda: engine.metric("vllm:num_requests_running") == 0, WITHIN)


def test_missing_backend_is_a_503_and_does_not_stop_the_start(start_gateway):
    """One bad backend never delays start-up; its models are still listed."""
    with start_gateway({"url": f"http://127.0.0.1:{free_port()}", "health": {"interval": "200ms"}}) as gateway:
        with OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL, ALIAS]
            with pytest.raises(openai.InternalServerError) as caught:
                chat(client)
            assert caught.value.status_code in (502, 503)
            eventually(lambda: no_healthy_backend(client), 3)


def no_healthy_backend(client: OpenAI) -> bool:
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    return (caught.value.status_code, caught.value.code) == (503, "no_healthy_backend")


def test_the_answer_through_the_gateway_equals_the_direct_one(gateway, engine: Engine):
    """The same fields in the same order with the same values, but for those of the request: id, time."""
    ask = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}
    answers = []
    for url, key in [(engine.url, "none"), (gateway.url, gateway.key)]:
        with OpenAI(base_url=url + "/v1", api_key=key, max_retries=0) as client:
            answer = client.chat.completions.with_raw_response.create(**ask)
            got = answer.http_response.json()
            answers.append(list(got.items()))
    direct, through = ([(name, value) for name, value in got if name not in ("id", "created")] for got in answers)
    assert direct == through
