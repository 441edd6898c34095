"""Media that vLLM would fetch over the network, from inside the cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.media import MAX_VALUES
from aiaas.openai.peek import peek

DATA = "data:image/png;base64,aGk="


def chat(part: Any) -> bytes:
    return json.dumps({"model": "a", "messages": [{"role": "user", "content": [part]}]}).encode()


@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url"])
@pytest.mark.parametrize(
    ("url", "fetched"),
    [
        (DATA, False),
        ("DATA:image/png;base64,aGk=", False),
        ("https://example.com/a.png", True),
        ("http://169.254.169.254/", True),
        ("file:///etc/passwd", True),
        ("//example.com/a.png", True),
        (" data:image/png;base64,aGk=", True),
        ("HTTP://EXAMPLE.COM", True),
        ("datax:", True),
        ("", True),
    ],
)
@pytest.mark.parametrize("shape", ["object", "string"])
def test_only_data_urls_pass(kind: str, url: str, fetched: bool, shape: str) -> None:
    """Whatever does not begin with `data:` would be fetched, in both shapes that vLLM reads."""
    part = {"type": kind, kind: {"url": url} if shape == "object" else url}
    assert peek(chat(part), paths.CHAT).media_url is fetched


def test_a_responses_input_image_is_found() -> None:
    """The responses shape has the URL directly below `image_url`."""
    part = {"type": "input_image", "image_url": "https://example.com/a.png"}
    body = {"model": "a", "input": [{"role": "user", "content": [part]}]}
    assert peek(json.dumps(body).encode(), paths.RESPONSES).media_url


@pytest.mark.parametrize(("url", "fetched"), [("https://example.com/a.png", True), (DATA, False)])
def test_an_anthropic_source_is_found(url: str, fetched: bool) -> None:
    """`source: {type: url}` on the messages path."""
    part = {"type": "image", "source": {"type": "url", "url": url}}
    assert peek(chat(part), paths.MESSAGES).media_url is fetched


def test_an_anthropic_base64_source_passes() -> None:
    """Inlined data has no URL."""
    part = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert not peek(chat(part), paths.MESSAGES).media_url


def test_a_tool_call_given_back_is_not_media() -> None:
    """A model's earlier call of a tool with an `image_url` argument is text for vLLM."""
    part = {"type": "tool_use", "id": "x", "name": "show", "input": {"image_url": "https://example.com"}}
    assert not peek(chat(part), paths.MESSAGES).media_url


def test_calling_a_request_a_tool_call_hides_nothing() -> None:
    """Neither the body itself nor other paths know `tool_use`."""
    part = {"type": "input_image", "image_url": "https://example.com/a.png"}
    body = {"model": "a", "type": "tool_use", "input": [{"type": "tool_use", "input": [part]}]}
    assert peek(json.dumps(body).encode(), paths.RESPONSES).media_url
    assert peek(json.dumps({"type": "tool_use", "input": [part]}).encode(), paths.MESSAGES).media_url


def test_a_media_key_written_with_escapes_is_found() -> None:
    """The gate by substring does not miss `image_\\u0075rl`."""
    body = chat({"image_url": "https://example.com"}).replace(b"image_url", b"image_\\u0075rl")
    assert b"image_url" not in body
    assert peek(body, paths.CHAT).media_url


def test_the_last_of_two_equal_keys_counts() -> None:
    """As in vLLM's parser."""
    for first, last, fetched in ((DATA, "https://x", True), ("https://x", DATA, False)):
        body = f'{{"messages": [{{"content": [{{"image_url": "{first}", "image_url": "{last}"}}]}}]}}'.encode()
        assert json.loads(body)["messages"][0]["content"][0]["image_url"] == last
        assert peek(body, paths.CHAT).media_url is fetched


@pytest.mark.parametrize(
    "value",
    [{"type": "string", "description": "an https:// address"}, None, [], {"url": None}, {"url": {"type": "string"}}],
)
def test_a_tools_schema_is_not_media(value: Any) -> None:
    """A parameter called `image_url` in a schema names no address."""
    body = {"tools": [{"function": {"parameters": {"properties": {"image_url": value}}}}]}
    assert not peek(json.dumps(body).encode(), paths.CHAT).media_url


def test_a_text_that_speaks_of_image_url_is_not_media() -> None:
    """Quoted JSON inside a prompt is a prompt."""
    assert not peek(chat({"type": "text", "text": '{"image_url": "https://x"}'}), paths.CHAT).media_url


def test_a_text_that_cannot_be_read_beside_media_is_refused() -> None:
    """A text that is not UTF-8 hides nothing behind it."""
    with pytest.raises(ClientError) as caught:
        peek(b'{"x": "\xff", "image_url": "https://x"}', paths.CHAT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'"",', b"1,"])
def test_a_body_of_too_many_values_beside_media_is_refused(filler: bytes) -> None:
    """A walk that would take long is not begun; without media the same body passes."""
    body = b'{"%s": null, "x": [' + filler * MAX_VALUES + b"1]}"
    assert peek(body % b"image", paths.CHAT).media_url is False
    with pytest.raises(ClientError) as caught:
        peek(body % b"image_url", paths.CHAT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
