"""aiaas.simulator.sound: answers to forms, in vLLM 0.32's words; clients are aiohttp and the OpenAI library."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import aiohttp
import pytest

from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator

AUDIO = SimulatorOptions(models=("whisper",), runner="audio", ttft=0.001, itl=0)
SOUND = bytes(range(256)) * 300
TEXT = f"{len(SOUND)} bytes with SHA-256 {hashlib.sha256(SOUND).hexdigest()}"


async def post(path: str, sound: bytes | None = SOUND, **fields: str) -> tuple[int, bytes]:
    """Send a form that aiohttp writes."""
    form = aiohttp.FormData()
    if sound is not None:
        form.add_field("file", io.BytesIO(sound), filename="a.wav", content_type="audio/wav")
    for name, value in fields.items():
        form.add_field(name, value)
    async with running_simulator(AUDIO) as simulator, aiohttp.ClientSession() as session:
        async with session.post(simulator.url + path, data=form) as response:
            return response.status, await response.read()


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        ("transcriptions", {}, {"text": TEXT, "usage": {"type": "duration", "seconds": 3}}),
        ("transcriptions", {"response_format": "text"}, {"text": TEXT, "usage": {"type": "duration", "seconds": 3}}),
        ("translations", {"model": "whisper"}, {"text": TEXT}),
        (
            "translations",
            {"response_format": "verbose_json", "language": "de"},
            {"duration": 2.4, "language": "de", "text": TEXT, "segments": [], "words": None},
        ),
    ],
    ids=["transcription", "as text", "translation", "in detail"],
)
async def test_answer_has_the_form_that_was_asked_for(path: str, fields: dict[str, str], answer: Any) -> None:
    """JSON each time."""
    status, body = await post(f"/v1/audio/{path}", **fields)
    assert (status, json.loads(body)) == (200, answer)


@pytest.mark.parametrize(
    ("sound", "fields", "status", "message"),
    [
        (None, {"model": "whisper"}, 400, "1 validation error"),
        (SOUND, {"model": "nope"}, 404, "The model `nope` does not exist."),
        (SOUND, {"response_format": "srt"}, 400, "Currently only support response_format"),
        (SOUND, {"stream_include_usage": "true"}, 400, "Stream options can only be defined when `stream=True`."),
        (SOUND, {"stream": "true", "response_format": "verbose_json"}, 400, "verbose_json format doesn't support"),
        (b"\x00" * (25 * 1024**2 + 1), {}, 400, "Maximum file size exceeded"),
    ],
    ids=["no file", "unknown model", "subtitles", "usage without a stream", "a stream in detail", "a large file"],
)
async def test_form_is_refused_in_vllms_words(
    sound: bytes | None, fields: dict[str, str], status: int, message: str
) -> None:
    """With the message of its own check."""
    found, body = await post("/v1/audio/transcriptions", sound, **fields)
    assert (found, json.loads(body)["error"]["message"][: len(message)]) == (status, message)


@pytest.mark.parametrize("usage", [False, True], ids=["without usage", "with usage"])
async def test_stream_leaves_out_the_fields_that_are_not_set(usage: bool) -> None:
    """Only the last event with text has a finish_reason, and usage comes only where it was asked for."""
    more = {"stream_include_usage": "true"} if usage else {}
    status, body = await post("/v1/audio/transcriptions", stream="true", **more)
    events = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")
    told = events.pop() if usage else None
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == TEXT
    assert [list(event["choices"][0]) for event in events[:-1]] == [["delta"]] * (len(events) - 1)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    if told is not None:
        assert (told["choices"], told["usage"]["completion_tokens"]) == ([], len(events))
        assert told["usage"]["prompt_tokens"] == 244
