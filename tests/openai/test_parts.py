"""aiaas.openai.parts: fields of a message's parts are found where vLLM reads parts, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.engine_fields import PARTS
from aiaas.openai.media import MAX_OBJECTS
from aiaas.openai.parts import part_field
from aiaas.openai.toplevel import may_hide_keys

EMBEDS = {"type": "image_embeds", "image_embeds": "AA=="}
NAMED = {"type": "image_url", "image_url": None, "uuid": "x"}


def place(body: Any, path: str = paths.CHAT) -> str | None:
    """The place of the field."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    return part_field(written, path, frozenset(PARTS), escaped=may_hide_keys(written))


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        (paths.CHAT, {"messages": [{"content": "a"}, {"content": [EMBEDS]}]}, "messages[1].content[0].image_embeds"),
        (paths.CHAT, {"messages": [{"content": [{"type": "text"}, NAMED]}]}, "messages[0].content[1].uuid"),
        (paths.CHAT, {"messages": [{"content": [{"audio_embeds": {"a": 1}}]}]}, "messages[0].content[0].audio_embeds"),
        (paths.EMBEDDINGS, {"messages": [[{"content": [EMBEDS]}]]}, "messages[0][0].content[0].image_embeds"),
        (paths.RERANK, {"documents": {"content": [EMBEDS]}}, "documents.content[0].image_embeds"),
        (paths.RESPONSES, {"input": [{"content": [NAMED]}]}, "input[0].content[0].uuid"),
        (paths.MESSAGES, {"messages": [{"content": [{"content": [EMBEDS]}]}]},
         "messages[0].content[0].content[0].image_embeds"),
    ],
)  # fmt: skip
def test_field_of_a_part_is_found(path: str, body: dict[str, Any], found: str) -> None:
    """Wherever vLLM reads parts."""
    assert place(body, path) == found


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"uuid": "x", "content": "image_embeds"}]},
        {"messages": [{"content": [{"type": "text", "text": "a", "uuid": "x"}]}]},
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}, "uuid": None}]}]},
        {"messages": [], "tools": [{"function": {"parameters": {"properties": {"image_embeds": {}}}}}]},
        {"messages": [{"role": "user", "content": "a"}], "metadata": [EMBEDS, NAMED]},
        {"messages": 5, "x": "image_embeds"},
    ],
)
def test_the_same_name_elsewhere_is_data(body: dict[str, Any]) -> None:
    """A message's own id, a text's, a tool's schema."""
    assert place(body) is None


def test_escaped_name_is_found() -> None:
    """JSON reads it as the same name."""
    assert place(rb'{"messages":[{"content":[{"im\u0061ge_embeds":1}]}]}') == "messages[0].content[0].image_embeds"


def test_name_behind_a_window_is_found() -> None:
    """A large body is searched in windows."""
    for size in range(256 * 1024 - 80, 256 * 1024, 7):
        body = {"pad": "x" * size, "messages": [{"content": [EMBEDS]}]}
        assert place(body) == "messages[0].content[0].image_embeds"


def test_very_many_values_beside_a_name_are_refused() -> None:
    """They would be decoded for nothing."""
    body = {"messages": [{"content": [EMBEDS]}, *([[]] * MAX_OBJECTS)]}
    with pytest.raises(ClientError, match="too many"):
        place(body)
