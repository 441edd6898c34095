"""`aiaas connect`: what it prints where, and what it never prints."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiaas.cli.main import run
from aiaas.clients.table import CLIENTS
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator

KEY = "sk-verysecret"
AWAY = "http://127.0.0.1:9"  # the discard port: connection refused
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No config and no key but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    monkeypatch.delenv("AIAAS_API_KEY", raising=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
async def server() -> AsyncIterator[SimulatorHandle]:
    """A vLLM with the model `coder`, which takes the key."""
    async with running_simulator(
        SimulatorOptions(models=("coder",), ttft=0, itl=0, api_key=KEY, auto_tool_choice=True)
    ) as running:
        yield running


def test_list_names_every_client(capsys: Output) -> None:
    """Without a client, each has a line; JSON lists them as well."""
    assert run(["connect"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [client.name for client in CLIENTS]
    assert run(["connect", "-o", "json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [client.name for client in CLIENTS]


def test_unknown_client_is_wrong_usage(capsys: Output) -> None:
    """The message lists the known ones."""
    assert run(["connect", "emacs"]) == 2
    assert "known: claude-code, codex" in capsys.readouterr().err


def test_stdout_is_only_what_is_pasted(capsys: Output) -> None:
    """`eval "$(aiaas connect claude-code)"` works: notes go to stderr."""
    assert run(["connect", "claude-code", "--url", AWAY, "--model", "coder", "--context", "65536"]) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith(("export ", "unset ")) for line in out.splitlines())
    assert f"export ANTHROPIC_BASE_URL={AWAY}\n" in out
    assert "--- the shell that starts it:" in err


def test_unreachable_gateway_leaves_placeholders(capsys: Output) -> None:
    """Printing works before the gateway runs, and says what it could not find out."""
    assert run(["connect", "claude-code", "--url", AWAY]) == 0
    out, err = capsys.readouterr()
    assert "export ANTHROPIC_MODEL=YOUR-MODEL\n" in out
    assert "export ANTHROPIC_AUTH_TOKEN=YOUR-KEY\n" in out
    assert "connection refused" in err
    assert "--context TOKENS" in err


def test_config_gives_url_and_model(tmp_path: Path, capsys: Output) -> None:
    """The public name of the config's kubernetes section and its first model, if the gateway cannot be asked."""
    (tmp_path / "aiaas.yaml").write_text(
        "backends:\n  vllm: {url: 'http://vllm:8000', models: [qwen]}\nauth: {keys_file: keys.yaml}\n"
        "server: {port: 9}\n"
    )
    assert run(["connect", "codex"]) == 0
    codex = tomllib.loads("model" + capsys.readouterr().out.partition("\nmodel")[2])
    assert codex["model"] == "qwen"
    assert codex["model_providers"]["aiaas"]["base_url"] == "http://127.0.0.1:9/v1"


def test_default_port_is_not_printed(capsys: Output) -> None:
    """People write https://api.example.com without a port."""
    url = "https://localhost:443/llm/v1"
    assert run(["connect", "curl", "--url", url, "--model", "coder", "--context", "1"]) == 0
    assert "curl https://localhost/llm/v1/chat/completions" in capsys.readouterr().out


async def test_gateway_tells_model_and_context(server: SimulatorHandle, key_file: Path, capsys: Output) -> None:
    """The list of models is asked with the key, which is then printed since its file was given."""
    arguments = ["connect", "opencode", "--url", server.url, "--api-key-file", str(key_file), "-o", "json"]
    assert await asyncio.to_thread(run, arguments) == 0
    shell, config = json.loads(capsys.readouterr().out)["blocks"]
    assert shell["text"] == f"export AIAAS_API_KEY={KEY}\n"
    model = json.loads(config["text"])["provider"]["aiaas"]["models"]["coder"]
    assert model["limit"] == {"context": 8192, "output": 2048}
    assert KEY not in config["text"]


async def test_key_of_the_environment_is_never_printed(
    server: SimulatorHandle, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """It is used to ask the gateway, and a placeholder is printed."""
    monkeypatch.setenv("AIAAS_API_KEY", KEY)
    assert await asyncio.to_thread(run, ["connect", "claude-code", "--url", server.url]) == 0
    assert await asyncio.to_thread(run, ["connect", "--check", "--url", server.url]) == 1
    out, err = capsys.readouterr()
    assert "export ANTHROPIC_MODEL=coder\n" in out
    assert KEY not in out + err


async def test_check_of_one_client_is_line_by_line(server: SimulatorHandle, key_file: Path, capsys: Output) -> None:
    """Claude Code does not fit into 8,192 tokens: exit code 1, and the option of vLLM to change."""
    arguments = ["connect", "--check", "claude-code", "--url", server.url, "--api-key-file", str(key_file)]
    assert await asyncio.to_thread(run, arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       /v1/messages with tools"
    assert lines[1] == "ok       /v1/messages/count_tokens"
    assert lines[2].startswith("missing  context of 32,768 tokens: the model has 8,192")


async def test_check_of_a_served_client_passes(server: SimulatorHandle, key_file: Path, capsys: Output) -> None:
    """Exit code 0, also as JSON."""
    arguments = ["connect", "--check", "curl", "--url", server.url, "--api-key-file", str(key_file), "-o", "json"]
    assert await asyncio.to_thread(run, arguments) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert (result["client"], result["passed"]) == ("curl", True)


async def test_check_of_all_has_a_line_for_each(server: SimulatorHandle, key_file: Path, capsys: Output) -> None:
    """Agents are missing something, the SDKs are not."""
    arguments = ["connect", "--check", "--url", server.url, "--api-key-file", str(key_file)]
    assert await asyncio.to_thread(run, arguments) == 1
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(found) == [client.name for client in CLIENTS]
    assert found["langchain"] == "ok"
    assert found["codex"].startswith("missing")


async def test_check_names_a_model_that_is_not_listed(server: SimulatorHandle, key_file: Path, capsys: Output) -> None:
    """The message lists the key's models."""
    arguments = ["connect", "--check", "--url", server.url, "--api-key-file", str(key_file), "--model", "other"]
    assert await asyncio.to_thread(run, arguments) == 1
    assert "may not use other; the gateway lists: coder" in capsys.readouterr().err


def test_check_of_an_unreachable_gateway_is_exit_code_3(capsys: Output) -> None:
    """An environment error, in one line."""
    assert run(["connect", "--check", "--url", AWAY]) == 3
    assert "connection refused" in capsys.readouterr().err
