"""The answers of a pooling simulator, and the paths of each runner. A text one: tests/e2e/wire_cases."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

import aiohttp
import pytest

from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator

POOLING = SimulatorOptions(models=("m",), runner="pooling", ttft=0.001, max_model_len=100)
USAGE = {
    "prompt_tokens": 3,
    "total_tokens": 3,
    "completion_tokens": 0,
    "prompt_tokens_details": None,
    "completion_tokens_details": None,
}


async def post(path: str, body: Any, options: SimulatorOptions = POOLING) -> tuple[int, Any]:
    async with running_simulator(options) as simulator, aiohttp.ClientSession() as session:
        async with session.post(simulator.url + path, json=body) as response:
            return response.status, json.loads(await response.read())


async def test_embeddings_have_the_form_of_transcript_150() -> None:
    """Keys in order; a text's vector is a unit vector and depends on the text alone."""
    status, body = await post("/v1/embeddings", {"input": ["a", "b c", "a"], "encoding_format": "float"})
    assert status == 200
    assert list(body) == ["id", "object", "created", "model", "data", "usage"]
    assert [list(item) for item in body["data"]] == [["index", "object", "embedding"]] * 3
    one, other, again = (item["embedding"] for item in body["data"])
    assert one == again != other
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-5)
    assert body["usage"] == {**USAGE, "prompt_tokens": 4, "total_tokens": 4}
    assert body["id"].startswith("embd-")


async def test_base64_holds_the_same_floats() -> None:
    """Little-endian 32-bit, as in transcript 151."""
    _, plain = await post("/v1/embeddings", {"input": "a"})
    _, packed = await post("/v1/embeddings", {"input": "a", "encoding_format": "base64"})
    vector = plain["data"][0]["embedding"]
    assert list(struct.unpack(f"<{len(vector)}f", base64.b64decode(packed["data"][0]["embedding"]))) == vector


async def test_pooling_names_its_fields_otherwise() -> None:
    """As in transcript 155."""
    _, body = await post("/pooling", {"input": "x"})
    assert list(body["data"][0]) == ["index", "object", "data"]
    assert (body["data"][0]["object"], body["id"][:8]) == ("pooling", "pooling-")


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_scores_have_the_form_of_transcript_153(path: str) -> None:
    """One text against two."""
    _, body = await post(path, {"text_1": "x", "text_2": ["y", "z"]})
    assert list(body) == ["id", "object", "created", "model", "data", "usage"]
    assert [(item["index"], item["object"]) for item in body["data"]] == [(0, "score"), (1, "score")]
    assert all(0 <= item["score"] <= 1 for item in body["data"])
    assert body["usage"] == USAGE


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rerank_has_the_form_of_transcript_154(path: str) -> None:
    """Best first, cut at top_n; the score is the one that /score gives."""
    _, body = await post(path, {"query": "x", "documents": ["y", "z", "w"], "top_n": 2})
    assert list(body) == ["id", "model", "usage", "results"]
    assert len(body["results"]) == 2
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    best = body["results"][0]
    assert list(best) == ["index", "document", "relevance_score"]
    assert best["document"] == {"text": ["y", "z", "w"][best["index"]], "multi_modal": None}
    _, score = await post("/score", {"text_1": "x", "text_2": best["document"]["text"]})
    assert score["data"][0]["score"] == best["relevance_score"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/embeddings", {"input": "a", "model": "nope"}, 404, "The model `nope` does not exist."),
        ("/v1/embeddings", {"input": []}, 400, "You must pass at least one prompt"),
        ("/v1/embeddings", {"input": "word " * 101}, 400, "This model's maximum context length is 100 tokens."),
        (
            "/score",
            {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]},
            400,
            "Input lengths must be either 1:1, 1:N or N:N",
        ),
        ("/rerank", {"query": "x", "documents": []}, 400, "At least one text_pair element must be given"),
    ],
)
async def test_pooling_refuses_in_vllms_words(path: str, body: Any, status: int, message: str) -> None:
    """An unknown model without the aliases that the text paths name."""
    found, answer = await post(path, body)
    assert (found, answer["error"]["message"][: len(message)]) == (status, message)


@pytest.mark.parametrize(
    ("runner", "path"), [("text", "/v1/messages/count_tokens"), ("pooling", "/v2/embed"), ("classify", "/classify")]
)
async def test_openapi_lists_the_routes_of_the_runner(runner: Any, path: str) -> None:
    """As FastAPI does; not `/metrics`, which is not one of its routes."""
    async with running_simulator(SimulatorOptions(runner=runner)) as simulator, aiohttp.ClientSession() as session:
        async with session.get(simulator.url + "/openapi.json") as response:
            listed = json.loads(await response.read())["paths"]
    assert listed[path] == {"post": {}}
    assert listed["/v1/models"] == {"get": {}}
    assert "/metrics" not in listed


@pytest.mark.parametrize(
    ("path", "runner"),
    [
        ("/v1/chat/completions", "pooling"),
        ("/classify", "pooling"),
        ("/v1/audio/transcriptions", "text"),
        ("/v1/chat/completions", "audio"),
        ("/v1/messages", "pooling"),
        ("/v1/embeddings", "text"),
        ("/score", "text"),
    ],
)
async def test_the_other_runners_paths_are_404(path: str, runner: Any) -> None:
    """As in vLLM."""
    assert await post(path, {}, SimulatorOptions(runner=runner)) == (404, {"detail": "Not Found"})


async def test_several_names_are_listed_and_the_first_signs() -> None:
    """Transcripts 105 and 109."""
    options = SimulatorOptions(models=("first", "second"), ttft=0.001, itl=0)
    messages = [{"role": "user", "content": "x"}]
    _, body = await post("/v1/chat/completions", {"model": "second", "messages": messages}, options)
    assert body["model"] == "first"
    async with running_simulator(options) as simulator, aiohttp.ClientSession() as session:
        async with session.get(simulator.url + "/v1/models") as response:
            listed = await response.json()
    assert [(model["id"], model["owned_by"]) for model in listed["data"]] == [
        ("first", "aiaas-simulator"),
        ("second", "aiaas-simulator"),
    ]


async def test_a_recorded_body_is_bounded() -> None:
    """The first MiB is kept, and the full length."""
    async with running_simulator(SimulatorOptions(ttft=0)) as simulator, aiohttp.ClientSession() as session:
        async with session.post(simulator.url + "/nope", data=io.BytesIO(b"x" * (1024 * 1024 + 5))) as response:
            assert response.status == 404
        (received,) = simulator.received
    assert (len(received.body), received.body_size) == (1024 * 1024, 1024 * 1024 + 5)
