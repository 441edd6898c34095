"""aiaas.proxy.upstream.lacking: paths that an engine does not have, end to end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiaas.openai import paths
from aiaas.proxy.upstream.lacking import learn
from tests.fakes.vllm import FakeVllm, Hang, Send, answer, error_answer, json_answer
from tests.proxy.conftest import Got, Running

EMBED = {"model": "m", "input": "a"}
LACKS = Send(answer(404, b'{"detail":"Not Found"}'))
UNKNOWN_MODEL = Send(error_answer(404, "The model `m` does not exist.", "NotFoundError"))
HAS = Send(json_answer({"object": "list", "usage": {"prompt_tokens": 1, "total_tokens": 1}}))
RETRIES = 'aiaas_retries_total{reason="lacks_path"}'


@pytest.fixture
async def other() -> Any:
    """A second replica."""
    fake = await FakeVllm.start()
    yield fake
    await fake.stop()


async def embed(running: Running, body: Any = EMBED, path: str = paths.EMBEDDINGS) -> Got:
    return await (await running.client()).post(body, path=path)


def lacks(running: Running) -> list[set[str]]:
    return [set(endpoint.lacks) for endpoint in running.endpoints()]


async def test_engine_without_the_path_is_named(gateway: Any, fake_vllm: FakeVllm) -> None:
    """Asked once and not again; the next request asks it again, since it may have the path by then."""
    running = await gateway(fake_vllm)
    for _ in range(2):
        fake_vllm.play(LACKS)
        got = await embed(running)
        assert (got.status, got.json["error"]["code"]) == (404, "not_offered")
        assert got.json["error"]["message"] == "The engine of this model does not have /v1/embeddings."
    assert len(fake_vllm.posts) == 2
    assert lacks(running) == [{paths.EMBEDDINGS}]
    assert running.log_lines()[0]["error_code"] == "not_offered"
    fake_vllm.play(HAS)
    assert (await embed(running)).status == 200


async def test_anthropic_client_reads_that_in_its_own_form(gateway: Any, fake_vllm: FakeVllm) -> None:
    """An older vLLM has no `/v1/messages`."""
    running = await gateway(fake_vllm)
    fake_vllm.play(LACKS)
    got = await embed(running, {"model": "m", "messages": [], "max_tokens": 1}, paths.MESSAGES)
    assert (got.status, got.json["type"], got.json["error"]["type"]) == (404, "error", "not_found_error")
    assert got.json["error"]["message"] == "The engine of this model does not have /v1/messages."


@pytest.mark.parametrize(
    "step",
    [
        UNKNOWN_MODEL,
        Send(answer(404, b'{"detail":"Not Found","x":1}')),
        Send(answer(404, b'{"detail":"no such adapter"}')),
        Send(answer(404, b"<html>Not Found</html>")),
    ],
    ids=["unknown model", "more fields", "another detail", "a page"],
)
async def test_other_404_passes_and_tells_nothing_about_the_path(gateway: Any, fake_vllm: FakeVllm, step: Send) -> None:
    """The engine has the path, as far as anybody knows."""
    running = await gateway(fake_vllm)
    fake_vllm.play(step)
    got = await embed(running)
    assert got.status == 404
    assert b"not_offered" not in got.body
    assert lacks(running) == [set()]


async def test_request_goes_to_the_replica_that_has_the_path(
    gateway: Any, fake_vllm: FakeVllm, other: FakeVllm
) -> None:
    """Found by one 404, after which the first one is not asked any more; other paths still go to both."""
    running = await gateway(backend={"urls": [fake_vllm.url, other.url], "balance": "round_robin"})
    first, second = running.endpoints()
    learn(first, frozenset())
    for _ in range(4):
        fake_vllm.play(LACKS)
        assert (await embed(running)).status == 200
    asked = len(fake_vllm.posts)
    assert asked == running.metric(RETRIES) == 1
    assert (set(first.lacks), set(second.lacks)) == ({paths.EMBEDDINGS}, set())
    fake_vllm.scripts.clear()
    for _ in range(4):
        await embed(running, {"model": "m", "messages": []}, paths.CHAT)
    assert len(fake_vllm.posts) == asked + 2


async def test_request_waits_for_the_replica_that_has_the_path(
    gateway: Any, fake_vllm: FakeVllm, other: FakeVllm
) -> None:
    """A free replica without the path is of no use while the other one is busy."""
    backend = {"urls": [fake_vllm.url, other.url], "max_inflight": 1, "fair": {"reserve": 0}}
    running = await gateway(backend=backend)
    learn(running.endpoints()[0], frozenset({paths.EMBEDDINGS}))
    other.play(Hang())
    client = await running.client()
    client.send(client.request(EMBED, path=paths.EMBEDDINGS))
    while not other.posts:
        await asyncio.sleep(0.005)
    waiting = asyncio.create_task(embed(running))
    while not running.backend().waiting:
        await asyncio.sleep(0.005)
    client.reset()
    assert (await waiting).status == 200
    assert not fake_vllm.posts


async def test_replica_with_the_path_that_is_down_is_a_503(gateway: Any, fake_vllm: FakeVllm, other: FakeVllm) -> None:
    """The client may try again; 404 would tell it not to."""
    running = await gateway(backend={"urls": [fake_vllm.url, other.url]})
    first, second = running.endpoints()
    learn(first, frozenset({paths.EMBEDDINGS}))
    second.set_up(False, "test")
    got = await embed(running)
    assert (got.status, got.json["error"]["code"]) == (503, "no_healthy_backend")
    assert (await embed(running, {"model": "m", "messages": []}, paths.CHAT)).status == 200


async def test_fallback_backend_that_has_the_path_is_asked_first(
    gateway: Any, fake_vllm: FakeVllm, other: FakeVllm
) -> None:
    """A backend of which no endpoint has the path is passed over."""
    running = await gateway(fake_vllm, backends={"other": {"url": other.url, "models": ["m"]}})
    learn(running.endpoints()[0], frozenset({paths.EMBEDDINGS}))
    assert (await embed(running)).status == 200
    assert (len(fake_vllm.posts), len(other.posts)) == (0, 1)
