"""aiaas.proxy.body: bounds on what one request may ask for. How bodies arrive is tested over the wire (test_app)."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.plan.model import RequestPlan, Route
from aiaas.proxy.body import bound_output, refuse_harm

URL = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}
DATA = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def route(
    path: str, most: int | None, over: Literal["reject", "clamp"] = "reject", default: int | None = None
) -> Route:
    """A model's entry."""
    return Route(path, "m", (), most, default, over)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (paths.CHAT, {"n": 8}, None),
        (paths.CHAT, {"n": 9}, "n"),
        (paths.COMPLETIONS, {"prompt": ["a"] * 8}, None),
        (paths.COMPLETIONS, {"prompt": ["a"] * 9}, "prompt"),
        (paths.COMPLETIONS, {"prompt": ["a"] * 4, "n": 2}, None),
        (paths.COMPLETIONS, {"prompt": ["a"] * 5, "n": 2}, "prompt"),
        (paths.COMPLETIONS, {"prompt": "a", "best_of": 9}, "n"),
        (paths.COMPLETIONS, {"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, None),
        (paths.EMBEDDINGS, {"input": ["a"] * 1000}, None),
        (paths.RESPONSES, {"background": True}, "background"),
        (paths.RESPONSES, {"background": False}, None),
        (paths.CHAT, {"messages": [{"content": [URL]}]}, "messages"),
        (paths.CHAT, {"messages": [{"content": [DATA]}]}, None),
        (paths.RESPONSES, {"input": [{"content": [{"type": "input_image", "image_url": "http://x/"}]}]}, "input"),
    ],
    ids=[
        "n at the bound", "n", "prompts at the bound", "prompts", "n times prompts at the bound", "n times prompts",
        "best_of", "one prompt as token ids", "a batch to embed", "background", "no background", "media by URL",
        "media inside", "media by URL in responses",
    ],
)  # fmt: skip
def test_what_would_hurt_others_is_refused(path: str, body: dict[str, Any], param: str | None) -> None:
    """And names the field."""
    peeked = peek(json.dumps({"model": "m"} | body).encode(), path)
    rules = RequestPlan(media_urls="deny", max_choices=8)
    if param is None:
        refuse_harm(peeked, rules, path)
    else:
        with pytest.raises(ClientError) as caught:
            refuse_harm(peeked, rules, path)
        assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_request", param)


def test_media_by_url_may_be_allowed() -> None:
    """By the config, knowingly."""
    peeked = peek(json.dumps({"model": "m", "messages": [{"content": [URL]}]}).encode(), paths.CHAT)
    refuse_harm(peeked, RequestPlan(media_urls="allow", max_choices=8), paths.CHAT)


@pytest.mark.parametrize(
    ("entry", "body", "sent", "bound"),
    [
        (route(paths.CHAT, None), b'{"a":1}', b'{"a":1}', None),
        (route(paths.CHAT, None, default=7), b'{"a":1}', b'{"a":1}', 7),
        (route(paths.CHAT, None, default=7), b'{"max_tokens":9}', b'{"max_tokens":9}', 9),
        (route(paths.CHAT, 5), b'{"a":1}', b'{"max_tokens":5,"a":1}', 5),
        (route(paths.CHAT, 5), b'{"max_tokens":null}', b'{"max_tokens":5}', 5),
        (route(paths.CHAT, 5), b'{"max_tokens":3}', b'{"max_tokens":3}', 3),
        (route(paths.CHAT, 5), b'{"max_completion_tokens":3}', b'{"max_completion_tokens":3}', 3),
        (route(paths.CHAT, 5, "clamp"), b'{"max_tokens":9}', b'{"max_tokens":5}', 5),
        (
            route(paths.CHAT, 5, "clamp"),
            b'{"max_tokens":1,"max_completion_tokens":9}',
            b'{"max_tokens":1,"max_completion_tokens":5}',
            5,
        ),
        (route(paths.RESPONSES, 5), b'{"a":1}', b'{"max_output_tokens":5,"a":1}', 5),
        (route(paths.EMBEDDINGS, 5), b'{"a":1}', b'{"a":1}', None),
    ],
    ids=[
        "no bound", "default reserves only", "asked", "spliced in", "null is absent", "asked less",
        "asked less in the new field", "clamped", "clamped in the field that vLLM obeys", "responses", "no output",
    ],
)  # fmt: skip
def test_the_output_is_bounded(entry: Route, body: bytes, sent: bytes, bound: int | None) -> None:
    """The request is changed only where it must be."""
    assert bound_output(body, peek(body, entry.path), entry) == (sent, bound)


def test_more_than_the_model_allows_is_refused_by_name() -> None:
    """Unless the entry says clamp."""
    body = b'{"max_completion_tokens":9}'
    with pytest.raises(ClientError, match="at most 5") as caught:
        bound_output(body, peek(body, paths.CHAT), route(paths.CHAT, 5))
    assert caught.value.param == "max_completion_tokens"
