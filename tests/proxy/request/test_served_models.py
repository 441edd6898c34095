"""aiaas.proxy.request.served_models: a backend's list of models against the config."""

from __future__ import annotations

import json

import pytest

from aiaas.proxy.request.served_models import Comparison, NotAModelList, ServedModel, compare, read_models, sentence
from tests.proxy.conftest import plan_of

BASE = ServedModel("base", "/models/base")
BACKEND = plan_of({"backends": {"vllm": {"url": "http://vllm:8000", "models": ["base", "small"]}}}).backends[0]


OWN = (("small", "base"),)


def listed(*models: ServedModel) -> dict[str, ServedModel]:
    return {model.id: model for model in models}


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (listed(BASE), Comparison()),
        (listed(BASE, ServedModel("small", "/models/base")), Comparison()),
        (listed(BASE, ServedModel("unused", "/x", "base")), Comparison()),
        (listed(BASE, ServedModel("small", "/adapters/small", "base")), Comparison((), OWN)),
        (listed(BASE, ServedModel("small", "/models/base", "base")), Comparison((), OWN)),
        (listed(BASE, ServedModel("small", "/models/small")), Comparison((), OWN)),
        (listed(ServedModel("base"), ServedModel("small")), Comparison((), OWN)),
        (listed(ServedModel("else")), Comparison(("base",))),
        (listed(ServedModel("small", "/models/base")), Comparison(("base",), OWN)),
        ({}, Comparison(("base",))),
    ],
    ids=[
        "as configured", "a second served name", "more than is used", "an adapter", "an adapter of one root",
        "another root", "no roots", "renamed", "only the alias is left", "empty",
    ],
)  # fmt: skip
def test_compare_finds_models_that_are_gone_or_their_own(models: dict[str, ServedModel], expected: Comparison) -> None:
    """Both ways, and a sentence for each finding."""
    found = compare(BACKEND, models)
    assert found == expected
    assert bool(sentence(found, models)) == bool(found.names)


def test_sentence_says_what_to_write() -> None:
    """Both faults, each with its fix."""
    text = sentence(Comparison(("base",), (("sql", "base"),)), listed(ServedModel("sql"), ServedModel("x")))
    assert "sql: an alias in the config, but a separate model there" in text
    assert "models: [{name: base}, {name: sql}]" in text
    assert "base: not served there; the backend lists sql, x" in text
    assert "lists nothing" in sentence(Comparison(("base",)), {})


def test_read_models_takes_what_vllm_says() -> None:
    """Root, parent, context and time; fields of another kind count as absent."""
    body = {
        "data": [
            {"id": "base", "root": "/m", "parent": None, "max_model_len": 2048, "created": 1_795_736_373},
            {"id": "odd", "root": 5, "parent": {}, "max_model_len": "2048", "created": True},
            {"id": "huge", "max_model_len": 2**63, "created": -1},
            {"id": 7},
        ]
    }
    assert read_models(200, b"application/json", json.dumps(body).encode()) == listed(
        ServedModel("base", "/m", None, 2048, 1_795_736_373), ServedModel("odd"), ServedModel("huge")
    )


def test_an_adapter_has_the_context_of_its_base() -> None:
    """vLLM 0.32 writes `"max_model_len": null` for an adapter."""
    adapter = {"id": "sql", "root": "/a", "parent": "base", "max_model_len": None}
    orphan = adapter | {"id": "orphan", "parent": "none"}
    body = {"data": [adapter, orphan, {"id": "base", "root": "/m", "max_model_len": 2048}]}
    found = read_models(200, b"application/json", json.dumps(body).encode())
    assert (found["sql"].max_model_len, found["orphan"].max_model_len) == (2048, None)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "message"),
    [
        (404, b"text/html; charset=utf-8", b"<html>", "GET /v1/models answered 404 text/html; is this a vLLM?"),
        (200, b"text/html", b"<html>", "answered 200 text/html but not a list of models; is this a vLLM?"),
        (200, b"application/json", b"[]", "but not a list of models"),
        (200, b"application/json", b"{}", "but not a list of models"),
        (200, b"application/json", b'{"data":1}', "but not a list of models"),
        (200, b"application/json", b'{"data":[1]}', "but not a list of models"),
        (200, b"application/json", b'{"data":[{}]}', "but not a list of models"),
        (200, b"application/json", b'{"data":null}', "but not a list of models"),
        (200, b"application/json", b"[" * 100_000, "but not a list of models"),
        (200, b"", b'"\xff"', "200 without a content type but not a list of models"),
        (200, b"\xff" * 1000, b"", "but not a list of models"),
        (401, b"application/json", b"{}", "answered 401: it requires a key, or a different key; `api_key_env`"),
        (401, b"application/json", b'{"error":{"code":"missing_api_key"}}', "an aiaas gateway listens there"),
        (400, b"text/html", b"The plain HTTP request was sent to HTTPS port", "the server speaks TLS; write https://"),
        (302, b"", b"", "answered 302 without a content type"),
    ],
)
def test_read_models_says_what_came_instead(status: int, content_type: bytes, body: bytes, message: str) -> None:
    """A web page, another API, a login page."""
    with pytest.raises(NotAModelList) as raised:
        read_models(status, content_type, body)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 300
