"""Each path of the allow-list through the gateway, to the simulator: served, priced, logged; and its headers."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.openai import paths
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import StartGateway, new_key

CHAT = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
PAIR = {"text_1": "a", "text_2": ["b", "c"]}
RANKED = {"query": "a", "documents": ["b", "c"]}
# Path -> runner of the simulator, body, and whether the answer reports usage.
SERVED: dict[str, tuple[Any, dict[str, Any], bool]] = {
    paths.CHAT: ("text", CHAT, True),
    paths.COMPLETIONS: ("text", {"prompt": "a b", "max_tokens": 2}, True),
    paths.RESPONSES: ("text", {"input": "a b", "max_output_tokens": 2}, True),
    paths.MESSAGES: ("text", CHAT, True),
    paths.COUNT_TOKENS: ("text", CHAT, False),
    paths.TOKENIZE: ("text", {"prompt": "a b"}, False),
    paths.DETOKENIZE: ("text", {"tokens": [300]}, False),
    paths.EMBEDDINGS: ("pooling", {"input": ["a", "b"]}, True),
    paths.V2_EMBED: ("pooling", {"texts": ["a", "b"], "input_type": "search_query"}, True),
    paths.SCORE: ("pooling", PAIR, True),
    paths.PLAIN_SCORE: ("pooling", PAIR, True),
    paths.RERANK: ("pooling", RANKED, True),
    paths.PLAIN_RERANK: ("pooling", RANKED, True),
    paths.V2_RERANK: ("pooling", RANKED, True),
    paths.POOLING: ("pooling", {"input": "a b"}, True),
    paths.CLASSIFY: ("classify", {"input": ["a", "b"]}, True),
}


@pytest.mark.parametrize("path", [path for path in paths.GENERATE if path not in paths.UPLOADS])
async def test_path_is_served_and_charged_as_vllm_reports(gateway: StartGateway, path: str) -> None:
    """An alias of the model is spliced everywhere; the log has the exact tokens wherever vLLM reports them."""
    runner, body, reports = SERVED[path]
    options = SimulatorOptions(models=("m",), runner=runner, ttft=0.001, itl=0)
    async with running_simulator(options) as simulator:
        backend = {"urls": [simulator.url], "endpoints": [path]}
        running = await gateway(backend=backend, rate_limit={"requests_per_minute": 100})
        got = await (await running.client()).post({"model": "alias", **body}, path=path)
        await running.quiet()
    assert got.status == 200, got.body
    (line,) = running.log_lines()
    assert (line["endpoint"], line["status"], line.get("estimated", False)) == (path, 200, False)
    assert (line["input_tokens"] is not None) == reports
    limit = got.header("x-ratelimit-limit-requests")
    assert limit == ("1000" if path in paths.CHEAP else "100")


@pytest.mark.parametrize("path", [paths.CLASSIFY, paths.POOLING, paths.EMBEDDINGS])
async def test_vast_batch_is_refused(gateway: StartGateway, fake_vllm: FakeVllm, path: str) -> None:
    """Counting prompts has a bound wherever `input` may be a list of them."""
    running = await gateway(fake_vllm, backend={"endpoints": [path]})
    body = b'{"model":"m","input":[' + b'"",' * 100_000 + b'""]}'
    got = await (await running.client()).post(body, path=path)
    assert (got.status, got.json["error"]["param"]) == (400, "input")


async def test_plugins_input_is_the_operators(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """An IO processor may fetch what `data` names."""
    running = await gateway(fake_vllm, backend={"endpoints": [paths.POOLING]})
    body = {"model": "m", "data": {"data_format": "url", "data": "http://10.0.0.1/"}}
    got = await (await running.client()).post(body, path=paths.POOLING)
    assert (got.status, got.json["error"]["param"]) == (400, "data")


@pytest.mark.parametrize("forwarded", [[], ["Anthropic-Beta", "X-Tenant"]], ids=["by itself", "and by the config"])
async def test_anthropic_headers_go_upstream_on_its_paths(
    gateway: StartGateway, fake_vllm: FakeVllm, forwarded: list[str]
) -> None:
    """Once each; elsewhere only where the config names them."""
    running = await gateway(fake_vllm, backend={"forward_headers": forwarded})
    client = await running.client()
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-1,b-2", "X-Tenant": "t"}
    for path in (paths.MESSAGES, paths.COUNT_TOKENS, paths.CHAT):
        await client.post({"model": "m", "messages": [], "max_tokens": 1}, path=path, headers=headers)
    message, count, chat = fake_vllm.posts
    for post in (message, count):
        assert post.headers["anthropic-version"] == "2023-06-01"
        assert post.headers["anthropic-beta"] == "a-1,b-2"
        assert post.head.lower().count(b"anthropic-beta") == 1
        assert post.headers.get("x-tenant") == ("t" if forwarded else None)
    assert "anthropic-version" not in chat.headers
    assert ("anthropic-beta" in chat.headers) == bool(forwarded)


# -- paths that are not there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "code", "said"),
    [
        ("POST", "/v1/score", "not_offered", "/v1/score is not offered here; the operator can add it to `backends."),
        ("GET", "/v1/score", "not_offered", "is not offered here"),
        ("POST", "/v1/embeddings/", "not_offered", "/v1/embeddings is not offered here"),
        ("POST", "/chat/completions", "not_found", "Did you mean /v1/chat/completions? Check the client's base URL."),
        ("GET", "/models", "not_found", "Did you mean /v1/models?"),
        ("GET", "/models/m", "not_found", "Did you mean /v1/models/m?"),
        ("POST", "/messages/count_tokens", "not_found", "Did you mean /v1/messages/count_tokens?"),
        ("POST", "/v1/v1/messages", "not_found", "Did you mean /v1/messages?"),
        ("GET", "/v1/responses/resp_1", "not_found", "Responses are not stored here"),
        ("POST", "/v1/responses/resp_1/cancel", "not_found", "Responses are not stored here"),
        ("POST", "/scale_elastic_ep", "not_found", "There is nothing at this path."),
        ("GET", "/", "not_found", "There is nothing at this path."),
    ],
)
async def test_missing_path_is_told_with_its_reason(
    gateway: StartGateway, fake_vllm: FakeVllm, method: str, path: str, code: str, said: str
) -> None:
    """Not offered, a wrong base URL, or nothing; the log has the same code."""
    running = await gateway(fake_vllm, backend={"endpoints": [paths.CHAT, paths.MODELS]})
    got = await (await running.client()).get(path, method=method)
    assert (got.status, got.json["error"]["code"]) == (404, code)
    assert said in got.json["error"]["message"]
    assert not fake_vllm.posts
    (line,) = running.log_lines("request")
    assert (line["status"], line["error_code"]) == (404, code)


async def test_model_of_a_backend_without_the_path_is_told_so(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """It exists, so it is not `model_not_found`; to a key that may not use it, it does not exist."""
    limited = new_key("limited", models=("m",))
    other = {"url": fake_vllm.url, "models": ["embedder"], "endpoints": [paths.EMBEDDINGS]}
    running = await gateway(fake_vllm, keys=(limited,), backend={"endpoints": [paths.CHAT]}, backends={"other": other})
    client = await running.client()
    got = await client.post({"model": "embedder", "messages": []})
    assert (got.status, got.json["error"]["code"]) == (404, "not_offered")
    assert "/v1/chat/completions is not offered for this model" in got.json["error"]["message"]
    for model, key in (("embedder", limited.text), ("nothing", running.key)):
        got = await client.post({"model": model, "messages": []}, key=key)
        assert got.json["error"]["code"] == "model_not_found"
