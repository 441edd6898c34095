"""The paths of a vLLM that runs a pooling model: embeddings, scores, rerank and classes. Pure.

Each function reads a request's body; it returns the prompt's tokens, and how to build the answer once the engine has
run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aiaas.simulator import errors, pooledanswers
from aiaas.simulator.answers import Json, Stamp
from aiaas.simulator.checks import check_model
from aiaas.simulator.forms import ClassifyForm, CohereForm, EmbeddingsForm, RerankForm, ScoreForm, fill_form
from aiaas.simulator.generate import tokenize
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.requests import prompt_texts

StampOf = Callable[[str], Stamp]  # from the prefix of an id
Pooled = tuple[int, Callable[[], Json]]


def _embeddings(data: object, options: SimulatorOptions, stamp_of: StampOf) -> Pooled:
    return _vectors(data, options, stamp_of("embd-"), pooling=False)


def _pooling(data: object, options: SimulatorOptions, stamp_of: StampOf) -> Pooled:
    return _vectors(data, options, stamp_of("pooling-"), pooling=True)


def _vectors(data: object, options: SimulatorOptions, stamp: Stamp, *, pooling: bool) -> Pooled:
    form = fill_form(EmbeddingsForm, data)
    texts = _some(prompt_texts(form.input))
    tokens = _tokens(form.model, texts, options)
    as_base64 = form.encoding_format == "base64"
    return tokens, lambda: pooledanswers.embeddings(
        stamp, texts, tokens, options.seed, base64_floats=as_base64, pooling=pooling
    )


def _cohere(data: object, options: SimulatorOptions, stamp_of: StampOf) -> Pooled:
    form, stamp = fill_form(CohereForm, data), stamp_of("embd-")
    texts = [*(form.texts or ()), *(form.images or ())]
    texts += ["".join(part.text or "" for part in entry.content) for entry in form.inputs or ()]
    tokens = _tokens(form.model, _some(texts), options)
    return tokens, lambda: pooledanswers.cohere_embeddings(
        stamp, texts, form.texts, tokens, options.seed, images=form.images is not None
    )


def _classify(data: object, options: SimulatorOptions, stamp_of: StampOf) -> Pooled:
    form, stamp = fill_form(ClassifyForm, data), stamp_of("classify-")
    texts = _some(prompt_texts(form.input))
    tokens = _tokens(form.model, texts, options)
    return tokens, lambda: pooledanswers.classes(stamp, texts, tokens, options.seed)


def _score(data: object, options: SimulatorOptions, stamp_of: StampOf) -> Pooled:
    form, stamp = fill_form(ScoreForm, data), stamp_of("score-")
    ones, twos = ([text] if isinstance(text, str) else text for text in (form.text_1, form.text_2))
    if len(ones) == 1:
        ones = ones * len(twos)
    if len(ones) != len(twos):
        raise errors.bad_request("Input lengths must be either 1:1, 1:N or N:N")
    _need_pairs(twos)
    tokens = _tokens(form.model, [*ones[:1], *twos], options)
    pairs = list(zip(ones, twos, strict=True))
    return tokens, lambda: pooledanswers.scores(stamp, pairs, tokens, options.seed)


def _rerank(data: object, options: SimulatorOptions, stamp_of: StampOf) -> Pooled:
    form, stamp = fill_form(RerankForm, data), stamp_of("score-")
    _need_pairs(form.documents)
    tokens = _tokens(form.model, [form.query, *form.documents], options)
    return tokens, lambda: pooledanswers.rerank(stamp, form.query, form.documents, form.top_n, tokens, options.seed)


def _tokens(model: str | None, texts: list[str], options: SimulatorOptions) -> int:
    check_model(model, options, pooling=True)
    counts = [len(tokenize(text)) for text in texts]
    if any(count > options.max_model_len for count in counts):
        raise errors.too_long(options.max_model_len)
    return sum(counts)


def _some(texts: list[str]) -> list[str]:
    if not texts:
        raise errors.bad_request("You must pass at least one prompt")
    return texts


def _need_pairs(texts: list[str]) -> None:
    if not texts:
        raise errors.bad_request("At least one text_pair element must be given")


# Path -> how to read its requests, by the runner of vLLM that serves it.
PARSERS: Final[Mapping[str, Mapping[str, Callable[[object, SimulatorOptions, StampOf], Pooled]]]] = {
    "text": {},
    "pooling": {
        "/v1/embeddings": _embeddings,
        "/v2/embed": _cohere,
        "/pooling": _pooling,
        "/score": _score,
        "/v1/score": _score,
        "/rerank": _rerank,
        "/v1/rerank": _rerank,
        "/v2/rerank": _rerank,
    },
    "classify": {"/classify": _classify, "/pooling": _pooling},
}
