"""Build the answers of a pooling model as JSON, with vLLM's fields in its order. Pure, like `simulator.answers`."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Sequence

from aiaas.simulator.answers import Json, SimulatedUsage, Stamp
from aiaas.simulator.generate import seed_of

EMBEDDING_SIZE = 64


def embedding_of(text: str, seed: int) -> list[float]:
    """Return a unit vector that depends only on the text and the seed."""
    rng = random.Random(seed_of("embedding", seed, text))
    values = [rng.gauss(0, 1) for _ in range(EMBEDDING_SIZE)]
    norm = sum(value * value for value in values) ** 0.5
    # Round to float32, as an engine computes, so that base64 and JSON have the same numbers.
    return [struct.unpack("<f", struct.pack("<f", value / norm))[0] for value in values]


def embeddings(
    stamp: Stamp, texts: Sequence[str], tokens: int, seed: int, *, base64_floats: bool, pooling: bool = False
) -> Json:
    """POST /v1/embeddings (150, 151), and /pooling, which uses other names for two fields (155)."""
    vectors = [embedding_of(text, seed) for text in texts]
    key, kind = ("data", "pooling") if pooling else ("embedding", "embedding")
    return {
        "id": stamp.id,
        "object": "list",
        "created": stamp.created,
        "model": stamp.model,
        "data": [
            {
                "index": index,
                "object": kind,
                key: base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if base64_floats else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": SimulatedUsage(tokens, 0).openai_full(),
    }


def cohere_embeddings(
    stamp: Stamp, texts: Sequence[str], echoed: Sequence[str] | None, tokens: int, seed: int, *, images: bool
) -> Json:
    """POST /v2/embed: Cohere's form, with the usage in `meta`. `echoed` is the request's `texts`."""
    units = {"input_tokens": 0 if images else tokens, "image_tokens": tokens if images else 0}
    return {
        "id": stamp.id,
        "embeddings": {"float": [embedding_of(text, seed) for text in texts]},
        **({} if echoed is None else {"texts": list(echoed)}),
        "meta": {"api_version": {"version": "2"}, "billed_units": units},
        "response_type": "embeddings_by_type",
    }


def classes(stamp: Stamp, texts: Sequence[str], tokens: int, seed: int) -> Json:
    """POST /classify, of a model with two classes."""
    first = [score_of("class", text, seed) for text in texts]
    return {
        "id": stamp.id,
        "object": "list",
        "created": stamp.created,
        "model": stamp.model,
        "data": [
            {"index": index, "label": f"LABEL_{int(one < 0.5)}", "probs": [one, 1 - one], "num_classes": 2}
            for index, one in enumerate(first)
        ],
        "usage": SimulatedUsage(tokens, 0).openai_full(),
    }


def score_of(one: str, two: str, seed: int) -> float:
    """Return a number from 0 to 1 that depends on both texts and the seed."""
    return random.Random(seed_of("score", seed, one, two)).random()


def scores(stamp: Stamp, pairs: Sequence[tuple[str, str]], tokens: int, seed: int) -> Json:
    """POST /score and /v1/score (153)."""
    return {
        "id": stamp.id,
        "object": "list",
        "created": stamp.created,
        "model": stamp.model,
        "data": [
            {"index": index, "object": "score", "score": score_of(one, two, seed)}
            for index, (one, two) in enumerate(pairs)
        ],
        "usage": SimulatedUsage(tokens, 0).openai_full(),
    }


def rerank(stamp: Stamp, query: str, documents: Sequence[str], top_n: int, tokens: int, seed: int) -> Json:
    """POST /rerank, /v1/rerank and /v2/rerank, best first (154); a `top_n` of 0 returns all documents."""
    results = [
        {
            "index": index,
            "document": {"text": document, "multi_modal": None},
            "relevance_score": score_of(query, document, seed),
        }
        for index, document in enumerate(documents)
    ]
    results.sort(key=lambda result: -float(str(result["relevance_score"])))
    return {
        "id": stamp.id,
        "model": stamp.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results[: top_n or None],
    }
