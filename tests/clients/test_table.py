"""The table of clients is complete and consistent."""

from __future__ import annotations

import re

import pytest

from aiaas.clients.client import KnownClient
from aiaas.clients.table import CLIENTS

NAMES = (
    *("claude-code", "codex", "opencode", "aider", "continue", "open-webui", "librechat"),
    *("openai-python", "openai-node", "anthropic", "langchain", "ai-sdk", "curl"),
)
every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def test_the_table_has_each_client_once() -> None:
    """A name of a client never means two."""
    assert [client.name for client in CLIENTS] == list(NAMES)


@every_client
def test_key_stands_only_as_an_environment_variable(client: KnownClient) -> None:
    """A file that is shared or committed never contains the key."""
    for block in client.blocks:
        places = re.findall(r"(\S*)«\{key\}»", block.text)
        assert all(re.fullmatch(r"[A-Z_]+=", place) for place in places)
        assert not places or block.language in ("sh", "env")
    assert any("«{key}»" in block.text for block in client.blocks)


@every_client
def test_row_has_a_source_and_paths(client: KnownClient) -> None:
    """Each row names its documentation and the paths that the client asks."""
    assert client.source.startswith("https://")
    assert client.needs
    assert all(path.startswith("/v1/") for path in (*client.needs, *(path for path, _ in client.uses)))
