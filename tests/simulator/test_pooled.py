"""The answers of `/v2/embed` and of a classifier. Embeddings, scores and rerank: test_app.py."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.simulator.options import SimulatorOptions
from tests.simulator.test_app import USAGE, post


@pytest.mark.parametrize(
    ("body", "units", "vectors"),
    [
        pytest.param({"texts": ["a", "b c"]}, {"input_tokens": 3, "image_tokens": 0}, 2, id="texts"),
        pytest.param({"images": ["data:a"]}, {"input_tokens": 0, "image_tokens": 1}, 1, id="images"),
        pytest.param({"inputs": [{"content": [{"type": "text", "text": "a"}]}]},
                     {"input_tokens": 1, "image_tokens": 0}, 1, id="inputs"),
    ],
)  # fmt: skip
async def test_cohere_embeddings_count_in_billed_units(body: Any, units: Any, vectors: int) -> None:
    """vLLM's form of Cohere's answer: floats by type, texts repeated, no `usage`."""
    status, answer = await post("/v2/embed", {"input_type": "search_query"} | body)
    assert status == 200
    assert len(answer["embeddings"]["float"]) == vectors
    assert answer.get("texts") == body.get("texts")
    assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": units}
    assert (await post("/v2/embed", body | {"texts": ["a"], "images": ["data:a"]}))[0] == 400


async def test_classifier_has_its_own_paths() -> None:
    """A class for each text, and probabilities that add up to 1."""
    options = SimulatorOptions(models=("m",), runner="classify", ttft=0.001)
    status, body = await post("/classify", {"input": ["a", "b c"]}, options)
    assert status == 200
    assert [list(item) for item in body["data"]] == [["index", "label", "probs", "num_classes"]] * 2
    assert all(sum(item["probs"]) == pytest.approx(1) for item in body["data"])
    assert (body["usage"], body["id"][:9]) == (USAGE, "classify-")
    assert (await post("/pooling", {"input": "a"}, options))[0] == 200
    assert (await post("/v1/embeddings", {"input": "a"}, options))[0] == 404
    assert (await post("/classify", {"input": []}, options))[0] == 400
