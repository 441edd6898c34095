"""`aiaas connect --check` over real sockets: the requests that are sent, and the findings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from aiaas.clients.check import OfferedModel, check_clients, connected, offered_models
from aiaas.clients.client import KnownClient
from aiaas.clients.table import CLIENTS
from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.client import HttpClient
from aiaas.httpclient.target import parse_target
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator
from tests.fakes.vllm import FakeVllm, Send, error_answer, json_answer

HttpOf = Callable[[str], Awaitable[HttpClient]]

KEY = "sk-secret"
LARGE = SimulatorOptions(models=("coder",), ttft=0, itl=0, max_model_len=65_536, auto_tool_choice=True)


def by_name(*names: str) -> tuple[KnownClient, ...]:
    return tuple(client for client in CLIENTS if client.name in names)


@pytest.fixture
async def fake() -> AsyncIterator[FakeVllm]:
    fake = await FakeVllm.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def http_of() -> AsyncIterator[HttpOf]:
    """Makes clients of servers, and closes them."""
    async with AsyncExitStack() as stack:

        async def make(url: str) -> HttpClient:
            return await stack.enter_async_context(connected(parse_target(url)))

        yield make


async def test_server_that_offers_everything_passes(http_of: HttpOf) -> None:
    """Nothing is missing at a vLLM with a large context; clients with the same needs share one request."""
    async with running_simulator(LARGE) as simulator:
        http = await http_of(simulator.url)
        [model] = await offered_models(http, KEY, 5)
        checks = await check_clients(http, CLIENTS, model, KEY)
        assert [str(finding) for check in checks for finding in check.findings if finding.state != "ok"] == []
        asked = [received.path for received in simulator.received if received.method == "POST"]
        assert len(asked) == 10


async def test_each_client_is_asked_for_with_its_own_headers(http_of: HttpOf) -> None:
    """The key comes in the client's own header, beside the headers that it sends."""
    async with running_simulator(SimulatorOptions(models=("coder",), ttft=0, itl=0)) as simulator:
        http = await http_of(simulator.url)
        await check_clients(http, by_name("claude-code", "anthropic"), OfferedModel("coder"), KEY)
        sent = {
            received.headers.get("x-api-key", received.headers.get("authorization")): received.headers
            for received in simulator.received
        }
        assert set(sent) == {KEY, f"Bearer {KEY}"}
        assert sent[f"Bearer {KEY}"]["x-claude-code-session-id"]
        assert sent[KEY]["anthropic-version"] == "2023-06-01"


async def test_server_without_a_tool_parser_fails_agents(fake: FakeVllm, http_of: HttpOf) -> None:
    """The finding names the two options of vLLM."""
    message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    fake.default = (Send(error_answer(400, message, "BadRequestError")),)
    [check] = await check_clients(await http_of(fake.url), by_name("codex"), OfferedModel("m", 65_536), None)
    assert not check.passed
    assert "--tool-call-parser NAME" in str(check.findings[0])


async def test_paths_that_are_not_there_are_missing(http_of: HttpOf) -> None:
    """A pooling server has neither chat nor messages: every client fails, on its own path."""
    options = SimulatorOptions(models=("embedder",), runner="pooling")
    async with running_simulator(options) as simulator:
        checks = await check_clients(await http_of(simulator.url), CLIENTS, OfferedModel("embedder"), None)
        assert [check.client.name for check in checks if check.passed] == []


async def test_token_limit_is_read_from_the_answer(fake: FakeVllm, http_of: HttpOf) -> None:
    """A key with fewer tokens a minute than one request needs fails the client."""
    fake.default = (Send(json_answer({}, headers="x-ratelimit-limit-tokens: 1000\r\n")),)
    [check] = await check_clients(await http_of(fake.url), by_name("opencode"), OfferedModel("m", 65_536), None)
    assert [finding.detail for finding in check.findings if finding.state == "missing"] == [
        "the key has 1,000 tokens a minute; raise `tokens_per_minute`"
    ]


async def test_first_probe_without_an_engine_ends_the_check(fake: FakeVllm, http_of: HttpOf) -> None:
    """A dead engine is said once, and not by a line for each client."""
    fake.default = (Send(error_answer(503, "No server for this model is reachable.", "Unavailable")),)
    http = await http_of(fake.url)
    with pytest.raises(EnvironmentFault, match="no answer for model m: No server for this model"):
        await check_clients(http, CLIENTS, OfferedModel("m"), None)
    assert len(fake.posts) == 1
    await fake.stop()
    with pytest.raises(EnvironmentFault, match="no answer for model m"):
        await check_clients(http, CLIENTS, OfferedModel("m"), None)


async def test_probe_that_gets_no_verdict_does_not_pass(fake: FakeVllm, http_of: HttpOf) -> None:
    """A path behind the first one at which the engine fails is untried, and the check does not pass."""
    fake.play(Send(json_answer({})))
    fake.play(Send(error_answer(500, "boom", "InternalServerError")))
    [check] = await check_clients(await http_of(fake.url), by_name("anthropic"), OfferedModel("m"), None)
    assert [finding.state for finding in check.findings] == ["ok", "untried"]
    assert not check.passed


async def test_wrong_key_is_named(http_of: HttpOf) -> None:
    """401 is a failed check, with and without a key."""
    async with running_simulator(SimulatorOptions(api_key=KEY)) as simulator:
        with pytest.raises(CheckFailed, match="refuses the key"):
            await offered_models(await http_of(simulator.url), "sk-other", 5)
        with pytest.raises(CheckFailed, match="requires a key"):
            await offered_models(await http_of(simulator.url), None, 5)


async def test_server_of_another_kind_is_named(fake: FakeVllm, http_of: HttpOf) -> None:
    """A page, or a list in another form, is not a list of models."""
    fake.gets["/v1/models"] = (Send(json_answer({"models": []})),)
    with pytest.raises(EnvironmentFault, match="did not return a list of models"):
        await offered_models(await http_of(fake.url), None, 5)
    fake.gets["/v1/models"] = (Send(json_answer({}, status=500)),)
    with pytest.raises(EnvironmentFault, match="returned 500"):
        await offered_models(await http_of(fake.url), None, 5)
    url = fake.url
    await fake.stop()
    with pytest.raises(EnvironmentFault, match="refused"):
        await offered_models(await http_of(url), None, 5)
