"""Real coding agents finish a task of two turns with a tool, through a gateway started from `aiaas init` alone.

They are configured by exactly what `aiaas connect` prints. The facts about their requests that the gateway relies on
are asserted here, so that a new version of a client that changes them is noticed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from aiaas.clients.table import CLIENTS
from tests.clients.setup import install
from tests.clients.stage import MODEL, Stage, command, running_stage

COUNT_TOKENS = "/v1/messages/count_tokens"
CHARACTERS_PER_TOKEN = 4  # of English and JSON, about

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(tmp_path) as running:
        yield running


def directions(tool: str, arguments: dict[str, str], end: str) -> str:
    """A prompt that lets the simulator call a tool and then end the turn."""
    return f"Do as directed.\naiaas-simulator: call {tool} {json.dumps(arguments)}\naiaas-simulator: say {end}\n"


def bodies(stage: Stage, path: str) -> list[dict[str, Any]]:
    return [json.loads(received.body) for received in stage.asked(path)]


def failures(stage: Stage) -> list[tuple[str, int]]:
    """Requests that the gateway or the engine refused."""
    return [(line["endpoint"], line["status"]) for line in stage.log() if line["status"] >= 400]


async def test_claude_code_finishes_two_turns_with_a_tool(stage: Stage) -> None:
    """It writes a file in the first turn, and reads it in the second, in the same session."""
    await stage.connect("claude-code")
    claude = [command("claude"), "--allowedTools", "Bash", "--output-format", "json", "-p"]
    first = json.loads(
        await stage.run(*claude, directions("Bash", {"command": "echo kiwi > note.txt"}, "It is written."))
    )
    assert (first["result"], first["is_error"]) == ("It is written.", False)
    assert (stage.project / "note.txt").read_text() == "kiwi\n"
    second = json.loads(await stage.run(*claude, directions("Bash", {"command": "cat note.txt"}, "It is kiwi."), "-c"))
    assert (second["result"], second["is_error"]) == ("It is kiwi.", False)
    assert failures(stage) == []
    assert first["modelUsage"][MODEL]["contextWindow"] == 131_072
    asked = bodies(stage, "/v1/messages")
    assert "kiwi" in json.dumps(asked[-1]["messages"][-1])  # the tool's result
    assert {body["model"] for body in asked} == {MODEL}
    assert all(body["max_tokens"] == 32_000 for body in asked if "tools" in body)


async def test_codex_finishes_two_turns_with_a_tool(stage: Stage) -> None:
    """It writes a file in the first turn, and reads it in the second, in the same thread."""
    await stage.connect("codex")
    codex = [command("codex"), "exec"]
    options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    shown = await stage.run(
        *codex, *options, directions("exec_command", {"cmd": "echo kiwi > note.txt"}, "It is written.")
    )
    assert "It is written." in shown
    assert (stage.project / "note.txt").read_text() == "kiwi\n"
    again = ["resume", "--last", *options]
    shown = await stage.run(*codex, *again, directions("exec_command", {"cmd": "cat note.txt"}, "It is kiwi."))
    assert "It is kiwi." in shown
    assert failures(stage) == []
    asked = bodies(stage, "/v1/responses")
    assert "kiwi" in json.dumps(asked[-1]["input"][-1])
    assert len({body["prompt_cache_key"] for body in asked}) == 1


async def test_opencode_finishes_two_turns_with_a_tool(stage: Stage) -> None:
    """It writes a file in the first turn, and reads it in the second, in the same session."""
    await stage.connect("opencode")
    opencode = [command("opencode"), "run"]
    write = {"command": "echo kiwi > note.txt", "description": "Writes a note"}
    read = {"command": "cat note.txt", "description": "Reads the note"}
    # By stdin, since it escapes the quotes of its arguments.
    assert "It is written." in await stage.run(*opencode, stdin=directions("bash", write, "It is written."))
    assert (stage.project / "note.txt").read_text() == "kiwi\n"
    assert "It is kiwi." in await stage.run(*opencode, "--continue", stdin=directions("bash", read, "It is kiwi."))
    assert failures(stage) == []
    assert "kiwi" in json.dumps(bodies(stage, "/v1/chat/completions")[-1]["messages"][-1])


@pytest.mark.parametrize(
    ("client", "path", "arguments"),
    [
        pytest.param("claude-code", "/v1/messages", ("claude", "-p", "Hello"), id="claude-code"),
        pytest.param("codex", "/v1/responses", ("codex", "exec", "--skip-git-repo-check", "Hello"), id="codex"),
        pytest.param("opencode", "/v1/chat/completions", ("opencode", "run", "Hello"), id="opencode"),
    ],
)
async def test_agent_sends_what_the_table_says(
    stage: Stage, client: str, path: str, arguments: tuple[str, ...]
) -> None:
    """Directly at the engine: the path, the headers, the key's header, tools, and instructions that fit the context."""
    row = next(row for row in CLIENTS if row.name == client)
    await stage.connect(client, stage.simulator.url)
    await stage.run(command(arguments[0]), *arguments[1:])
    request = max(stage.simulator.received, key=lambda received: received.body_size)
    assert (request.path, row.needs) == (path, (path,))
    assert {header.name for header in row.headers} <= set(request.headers)
    assert request.headers[row.key_in].startswith("Bearer ")
    body = json.loads(request.body)
    assert body["stream"]
    assert row.tools == bool(body["tools"])
    assert request.body_size / CHARACTERS_PER_TOKEN < row.context / 2


async def test_codex_names_its_session_in_headers_and_body(stage: Stage) -> None:
    """The gateway routes by them; they are one id."""
    await stage.connect("codex", stage.simulator.url)
    await stage.run(command("codex"), "exec", "--skip-git-repo-check", "Hello")
    [request] = stage.asked("/v1/responses")
    session = request.headers["session-id"]
    assert request.headers["thread-id"] == session
    assert json.loads(request.body)["prompt_cache_key"] == session


async def test_claude_code_names_its_session_in_header_and_body(stage: Stage) -> None:
    """The body has it in a JSON text inside of `metadata.user_id`."""
    await stage.connect("claude-code", stage.simulator.url)
    await stage.run(command("claude"), "-p", "Hello")
    [request] = stage.asked("/v1/messages")
    user = json.loads(json.loads(request.body)["metadata"]["user_id"])
    assert user["session_id"] == request.headers["x-claude-code-session-id"]


async def test_context_command_counts_tokens_at_once(stage: Stage) -> None:
    """`/context` sends two dozen requests for counts; without the path it estimates. It generates nothing."""
    await stage.connect("claude-code", stage.simulator.url)
    assert "Context Usage" in await stage.run(command("claude"), "-p", "/context")
    assert len(stage.asked(COUNT_TOKENS)) > 10
    assert stage.asked("/v1/messages") == []
    await stage.connect("claude-code")
    assert "Context Usage" in await stage.run(command("claude"), "-p", "/context")
    assert stage.asked("/v1/messages") == []


@pytest.mark.parametrize("client", ["openai-python", "openai-node", "anthropic", "langchain", "ai-sdk", "curl"])
async def test_pasted_code_prints_an_answer(stage: Stage, client: str) -> None:
    """The code of each SDK runs as `aiaas connect` prints it."""
    shell, *code = await stage.blocks(client)
    if not code:
        shown = await stage.run("sh", "-c", shell["text"])
    elif code[0]["language"] == "python":
        await stage.connect(client)
        shown = await stage.run(str(install() / "venv" / "bin" / "python"), "-c", code[0]["text"])
    else:
        await stage.connect(client)
        # Node looks for packages beside the file.
        with NamedTemporaryFile("w", suffix=".mjs", dir=install()) as file:
            file.write(code[0]["text"])
            file.flush()
            shown = await stage.run("node", file.name)
    assert "This is the aiaas simulator" in shown
    assert failures(stage) == []
