"""Each block can be pasted: its language's own parser reads it, and finds the values that were put in."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.clients.client import Block, KnownClient
from aiaas.clients.paste import MAX_OUTPUT, UNKNOWN_KEY, Offer, paste
from aiaas.clients.table import CLIENTS

KEY = "sk-$(echo)'x"
OFFERS = {
    "plain": Offer("http://127.0.0.1:8080", "coder", KEY, 65_536),
    "hostile": Offer("https://api.example.com/llm", 'org/it\'s "a" $HOME `x` \\n #é{}', KEY, 65_536),
    "unknown context": Offer("http://[::1]:8080", "coder", None, None),
}
every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
every_offer = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())


def by_name(name: str) -> KnownClient:
    return next(client for client in CLIENTS if client.name == name)


def block_of(name: str, offer: Offer, language: str) -> Block:
    return next(block for block in paste(by_name(name), offer) if block.language == language)


def variables(text: str) -> dict[str, str]:
    """The environment after a shell ran the text; a real shell, without the user's own variables."""
    script = text + "\nenv -0\n"
    ran = subprocess.run(["sh", "-eu"], input=script.encode(), capture_output=True, check=True, env={"PATH": "/bin"})
    return dict(line.split("=", 1) for line in ran.stdout.decode().split("\0") if line)


@every_client
@every_offer
def test_block_is_read_by_its_own_parser(client: KnownClient, offer: Offer, tmp_path: Path) -> None:
    """Shell, JSON, TOML, YAML, Python and JavaScript are valid, whatever the model is called."""
    for block in paste(client, offer):
        assert "«" not in block.text
        match block.language:
            case "sh" | "env":
                subprocess.run(["sh", "-n"], input=block.text.encode(), check=True)
            case "json":
                json.loads(block.text)
            case "toml":
                tomllib.loads(block.text)
            case "yaml":
                yaml.safe_load(block.text)
            case "python":
                compile(block.text, "pasted", "exec")
            case "javascript":
                if shutil.which("node") is None:
                    pytest.skip("node is not installed")
                path = tmp_path / "pasted.mjs"
                path.write_text(block.text, encoding="utf-8")
                subprocess.run(["node", "--check", str(path)], check=True)


@every_client
def test_key_is_printed_only_where_it_is_given(client: KnownClient) -> None:
    """Without a key there is a placeholder in its place."""
    texts = "".join(block.text for block in paste(client, Offer("http://gateway", "coder")))
    assert UNKNOWN_KEY in texts


@pytest.mark.parametrize("offer", [OFFERS["plain"], OFFERS["hostile"]], ids=["plain", "hostile"])
def test_shell_gets_the_values_unchanged(offer: Offer) -> None:
    """A model's name with quotes, dollars and blanks reaches the client as it is."""
    found = variables(block_of("claude-code", offer, "sh").text.replace("unset ANTHROPIC_API_KEY\n", ""))
    assert found["ANTHROPIC_BASE_URL"] == offer.url
    assert found["ANTHROPIC_AUTH_TOKEN"] == KEY
    assert {found[name] for name in found if name.endswith("_MODEL")} == {offer.model}
    assert found["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "65536"
    assert found["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "16384"


@pytest.mark.parametrize("offer", [OFFERS["plain"], OFFERS["hostile"]], ids=["plain", "hostile"])
def test_files_hold_the_values_unchanged(offer: Offer) -> None:
    """TOML, JSON and YAML give back the URL, the model and the numbers."""
    codex = tomllib.loads(block_of("codex", offer, "toml").text)
    assert (codex["model"], codex["model_context_window"]) == (offer.model, 65_536)
    assert codex["model_providers"]["aiaas"]["base_url"] == f"{offer.url}/v1"
    opencode = json.loads(block_of("opencode", offer, "json").text)
    assert opencode["model"] == f"aiaas/{offer.model}"
    assert opencode["provider"]["aiaas"]["models"][offer.model]["limit"] == {"context": 65_536, "output": 16_384}
    librechat: dict[str, Any] = yaml.safe_load(block_of("librechat", offer, "yaml").text)
    [endpoint] = librechat["endpoints"]["custom"]
    assert endpoint["models"]["default"] == [offer.model]
    assert endpoint["headers"] == {"X-Conversation-Id": "{{LIBRECHAT_BODY_CONVERSATIONID}}"}
    [model] = yaml.safe_load(block_of("continue", offer, "yaml").text)["models"]
    assert (model["model"], model["defaultCompletionOptions"]["contextLength"]) == (offer.model, 65_536)


def test_unknown_context_leaves_its_lines_out() -> None:
    """Where the context size is unknown, the client keeps its own default."""
    assert "CONTEXT" not in block_of("claude-code", OFFERS["unknown context"], "sh").text
    opencode = json.loads(block_of("opencode", OFFERS["unknown context"], "json").text)
    assert opencode["provider"]["aiaas"]["models"]["coder"] == {"tool_call": True}


def test_answer_of_a_large_context_is_bounded() -> None:
    """A quarter of a million tokens would be more than a client ever asks for."""
    found = variables(block_of("claude-code", Offer("http://g", "m", "k", 1_000_000), "sh").text)
    assert found["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == str(MAX_OUTPUT)
