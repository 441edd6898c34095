"""The probes of `aiaas connect --check`, and the verdicts on their answers."""

from __future__ import annotations

import json

import pytest

from aiaas.clients.client import KnownClient
from aiaas.clients.probes import Probe, ProbeReply, judge_context, judge_path, judge_tokens, probes_of
from aiaas.clients.table import CLIENTS

CLAUDE = next(client for client in CLIENTS if client.name == "claude-code")
CODEX = next(client for client in CLIENTS if client.name == "codex")
CURL = next(client for client in CLIENTS if client.name == "curl")
MESSAGES = Probe("/v1/messages", tools=True)

NO_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
VERDICTS = [
    pytest.param(ProbeReply(200), "ok", "", id="an answer"),
    pytest.param(ProbeReply(404, "not_found", "There is nothing at this path."), "missing", "endpoints", id="no path"),
    pytest.param(ProbeReply(405), "missing", "endpoints", id="wrong method"),
    pytest.param(ProbeReply(404, "model_not_found", "no such model"), "missing", "no such model", id="no model"),
    pytest.param(
        ProbeReply(
            400, "400", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        ),
        "missing",
        "start vLLM with --enable-auto-tool-choice --tool-call-parser NAME",
        id="no parser",
    ),
    pytest.param(ProbeReply(400, "400", "header too odd"), "missing", "400: header too odd", id="another refusal"),
    pytest.param(ProbeReply(429, "rate_limit_exceeded", "wait 3s"), "untried", "wait 3s", id="over its limit"),
    pytest.param(ProbeReply(503, "no_healthy_backend", "down"), "untried", "down", id="backend down"),
    pytest.param(ProbeReply(None, message="connection refused"), "untried", "connection refused", id="no answer"),
]


@pytest.mark.parametrize(("reply", "state", "detail"), VERDICTS)
def test_answer_becomes_a_verdict(reply: ProbeReply, state: str, detail: str) -> None:
    """A line says whether the path is offered, and what to change."""
    finding = judge_path(CLAUDE, MESSAGES, reply)
    assert (finding.state, finding.need) == (state, "/v1/messages with tools")
    assert detail in finding.detail


def test_missing_extra_path_says_its_consequence() -> None:
    """A path that a client can work without is missing all the same, with what happens then."""
    finding = judge_path(CLAUDE, Probe("/v1/messages/count_tokens"), ProbeReply(404))
    assert str(finding).startswith("missing  /v1/messages/count_tokens: not offered")
    assert "`/context` shows its own estimates" in finding.detail


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_probe_has_a_bounded_body_and_ascii_headers(client: KnownClient) -> None:
    """Each probe asks for one token, with the client's headers."""
    for probe in probes_of(client):
        body = probe.body("m")
        if body is None:
            assert probe.path == "/v1/models"
            continue
        fields = json.loads(body)
        assert fields["model"] == "m"
        if "count_tokens" not in probe.path:
            assert 1 in (fields.get("max_tokens"), fields.get("max_output_tokens"))
        assert ("tools" in fields) == probe.tools
        if probe.path in (*client.needs, *dict(client.uses)):
            assert {name for name, _ in probe.headers} == {header.name for header in client.headers}
        assert all(f"{name}{value}".isascii() for name, value in probe.headers)


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        pytest.param(ProbeReply(200), "ok", id="an answer"),
        pytest.param(ProbeReply(400, "400", NO_PARSER), "missing", id="no parser"),
        pytest.param(ProbeReply(404, "not_found", "nothing here"), "unknown", id="no chat"),
    ],
)
def test_parser_behind_responses_is_seen_by_a_chat(reply: ProbeReply, state: str) -> None:
    """vLLM takes tools on /v1/responses without a parser, and never calls them."""
    *_, chat = probes_of(CODEX)
    assert (chat.path, chat.tools) == ("/v1/chat/completions", True)
    assert (judge_path(CODEX, chat, reply).need, judge_path(CODEX, chat, reply).state) == (
        "a parser for tool calls",
        state,
    )


def test_clients_with_equal_needs_share_a_probe() -> None:
    """The SDKs that call chat completions are checked by one request."""
    shared = {probes_of(client) for client in CLIENTS if client.name in ("openai-python", "openai-node", "langchain")}
    assert len(shared) == 1


@pytest.mark.parametrize(
    ("context", "state"),
    [
        pytest.param(None, "unknown", id="not listed"),
        pytest.param(32_767, "missing", id="one too few"),
        pytest.param(32_768, "ok", id="just enough"),
    ],
)
def test_context_is_compared_with_the_clients_need(context: int | None, state: str) -> None:
    """An agent whose own instructions do not fit is told so."""
    finding = judge_context(CLAUDE, context)
    assert finding is not None
    assert finding.state == state
    assert judge_context(CURL, context) is None


@pytest.mark.parametrize(("limit", "state"), [(32_767, "missing"), (32_768, "ok")])
def test_token_limit_below_one_request_is_missing(limit: int, state: str) -> None:
    """A key whose minute is smaller than one request of the client can never send it."""
    finding = judge_tokens(CLAUDE, (ProbeReply(200), ProbeReply(200, tokens_per_minute=limit)))
    assert finding is not None
    assert finding.state == state
    assert judge_tokens(CLAUDE, (ProbeReply(200),)) is None
