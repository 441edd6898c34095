"""The OpenAI library sends files through the gateway to a simulator that tells their SHA-256."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator
from tests.proxy.conftest import Running, StartGateway, gateway, known_key  # noqa: F401  (fixtures)
from tests.proxy.forms import AUDIO

SMALL = random.Random(1).randbytes(40_000)
LARGE = random.Random(2).randbytes(5 * 1024**2)


def text_of(sound: bytes) -> str:
    """The simulator's answer."""
    return f"{len(sound)} bytes with SHA-256 {hashlib.sha256(sound).hexdigest()}"


def a_file(sound: bytes) -> io.BytesIO:
    """A file of that content."""
    made = io.BytesIO(sound)
    made.name = "talk.wav"
    return made


@pytest.fixture
async def simulator() -> AsyncIterator[SimulatorHandle]:
    """A simulator of a speech model."""
    async with running_simulator(SimulatorOptions(models=("m",), runner="audio", ttft=0.001, itl=0)) as handle:
        yield handle


@pytest.fixture
async def running(gateway: StartGateway, simulator: SimulatorHandle) -> Running:  # noqa: F811
    """A gateway before it."""
    return await gateway(simulator.url, backend=AUDIO)


@pytest.fixture
async def client(running: Running) -> AsyncIterator[AsyncOpenAI]:
    """The official client, which does not retry."""
    url = f"http://127.0.0.1:{running.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key=running.key, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("sound", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("model", ["m", "alias"])
async def test_file_of_the_sdk_arrives_whole(client: AsyncOpenAI, model: str, sound: bytes) -> None:
    """Transcribed and translated."""
    transcribed = await client.audio.transcriptions.create(model=model, file=a_file(sound))
    assert transcribed.text == text_of(sound)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        translated = await client.audio.translations.create(model=model, file=a_file(sound))
    assert translated.text == text_of(sound)


async def test_sdk_gets_details_and_lists_of_fields(client: AsyncOpenAI) -> None:
    """`timestamp_granularities[]` comes twice in its form."""
    got = await client.audio.transcriptions.create(
        model="alias",
        file=a_file(LARGE),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="de",
    )
    assert (got.text, got.language) == (text_of(LARGE), "de")


@pytest.mark.parametrize("sound", [SMALL, LARGE], ids=["small", "large"])
async def test_sdk_streams_a_transcription(client: AsyncOpenAI, running: Running, sound: bytes) -> None:
    """Its events are vLLM's; their usage is counted, and not shown to a client that did not ask."""
    stream = await client.audio.transcriptions.create(model="alias", file=a_file(sound), stream=True)
    events: list[Any] = [event async for event in stream]
    text = "".join(event.choices[0]["delta"]["content"] for event in events)
    assert text == text_of(sound)
    await running.quiet()
    line = running.log_lines()[-1]
    assert line["output_tokens"] == len(events)
    assert line["input_tokens"] == -(-len(sound) // 320) + 4


async def test_errors_are_the_sdks_own_exceptions(client: AsyncOpenAI, running: Running) -> None:
    """Of the gateway and of the engine."""
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.audio.transcriptions.create(model="nope", file=a_file(LARGE))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.audio.transcriptions.create(model="m", file=a_file(LARGE), extra_body={"vllm_xargs": '{"a": 1}'})
    assert refused.value.param == "vllm_xargs"
    with pytest.raises(openai.BadRequestError, match="Currently only support"):
        await client.audio.transcriptions.create(model="m", file=a_file(LARGE), response_format="srt")
    async with AsyncOpenAI(base_url=str(client.base_url), api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.audio.transcriptions.create(model="m", file=a_file(SMALL))


@pytest.mark.parametrize("sound", [SMALL, LARGE], ids=["small", "large"])
async def test_form_with_the_file_first_arrives_whole(running: Running, sound: bytes) -> None:
    """As curl and the library for Node order it; this one is written by aiohttp, in chunks."""
    form = aiohttp.FormData()
    form.add_field("file", a_file(sound), filename="talk.wav", content_type="audio/wav")
    form.add_field("model", "alias")
    headers = {"Authorization": f"Bearer {running.key}"}
    url = f"http://127.0.0.1:{running.port}/v1/audio/transcriptions"
    async with aiohttp.ClientSession() as session, session.post(url, data=form, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert (await response.json())["text"] == text_of(sound)
