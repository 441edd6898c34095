"""Media that vLLM would fetch over the network, from inside the cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.media import _LONGEST_KEY, _WINDOW, MAX_OBJECTS, MAX_PLACES, MEDIA_KEYS
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


def test_each_of_two_equal_keys_counts() -> None:
    """Whichever of them vLLM's parser takes."""
    for urls, fetched in (((DATA, "https://x"), True), (("https://x", DATA), True), ((DATA, DATA), False)):
        part = f'{{"image_url": "{urls[0]}", "image_url": "{urls[1]}"}}'
        assert peek(f'{{"messages": [{{"content": [{part}]}}]}}'.encode(), paths.CHAT).media_url is fetched


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


@pytest.mark.parametrize(
    "text",
    [
        b'"a \\"image_url": "https://x"', b'"a \\\\\\"image_url": "https://x"', b'"image_url\\": https://x"',
        b'"image_url \\" : \\"https://x"', b'["image_url", "https://x"]', b'{"x": "image_url", "y": "https://x"}',
        b'"\\\"image_url"', b'{"image\\_url": 1}',
    ],
)  # fmt: skip
def test_what_only_looks_like_a_media_key_is_none(text: bytes) -> None:
    """The end of a text, the beginning of one, or a value."""
    body = b'{"model": "m", "x": ' + (b"{%b}" % text if b'": ' in text and text[:1] == b'"' else text) + b"}"
    try:
        json.loads(body)
    except ValueError:
        return
    assert not peek(body, paths.CHAT).media_url


@pytest.mark.parametrize("before", [b"\\\\", b"\\\\\\\\", b"a\\\\", b"\\n", b""])
def test_a_key_behind_a_text_that_ends_with_backslashes_is_found(before: bytes) -> None:
    """Only an odd number of them escapes a quote."""
    body = b'{"x": "%b", "y": {"%b":1,"image_url":"https://x"}}' % (before, before)
    json.loads(body)
    assert peek(body, paths.CHAT).media_url


@pytest.mark.parametrize("space", [b"", b" ", b"\n\t\r "])
@pytest.mark.parametrize("rest", [b"}", b",1]", b' , "z": {"a": [1, {}]}}'])
def test_an_object_is_read_to_its_end_and_no_further(space: bytes, rest: bytes) -> None:
    """Wherever it stands, with other fields before and behind the URL."""
    for url, fetched in ((DATA.encode(), False), (b"https://x", True)):
        media = b'{"a": [{"url": 1}, "}"], "url"%b:%b"%b", "detail": {"url": "https://y"}}' % (space, space, url)
        entry = b'"image_url"%b:%b%b' % (space, space, media)
        body = b'{"x": [{%b}' % entry + (rest + b"}" if rest == b",1]" else b"]" + rest[:-1] + b"}")
        json.loads(body)
        assert peek(body, paths.CHAT).media_url is fetched


def test_of_a_tool_call_only_the_input_is_no_media() -> None:
    """What stands beside it, or elsewhere in the body, counts."""
    call = {"type": "tool_use", "input": {"image_url": "https://x", "source": {"url": "https://x"}}}
    image = {"type": "image", "source": {"type": "url", "url": "https://x"}}
    for content, fetched in (
        ([call], False),
        ([call, call, {"type": "text", "text": "x"}], False),
        ([call, image], True),
        ([call | {"image_url": "https://x"}], True),
        ([{"type": "tool_result", "content": [call]}], True),
        ([call | {"type": "text"}], True),
        ([call, call | {"type": "text"}], True),
        (call, True),
    ):
        body = {"model": "m", "messages": [{"content": "x"}, {"content": content}]}
        assert peek(json.dumps(body).encode(), paths.MESSAGES).media_url is fetched, content
    assert peek(json.dumps({"messages": [call], "x": "tool_use"}).encode(), paths.MESSAGES).media_url


@pytest.mark.parametrize("size", [0, _WINDOW - 60, _WINDOW - 30, _WINDOW - 10, _WINDOW, 3 * _WINDOW])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_key_is_found_once_wherever_it_stands(size: int, escaped: bool) -> None:
    """Also across the end of a window, and in the longest form."""
    key = b"image_url"
    if escaped:
        key = "".join(f"\\u{letter:04X}" for letter in key).encode()
        assert len(key) + 2 <= _LONGEST_KEY
    for end in range(0, 60, 7):
        body = b'{"model": "m", "x": "%b", "y": {"%b": "%b"}}' % (b"x" * (size + end), key, b"https://x")
        assert peek(body, paths.CHAT).media_url
        assert not peek(body.replace(b"https://x", DATA.encode()), paths.CHAT).media_url
        call = b'{"type": "tool_use", "input": {"%b": "https://x"}}' % key
        body = b'{"x": "%b", "messages": [{"content": [%b]}]}' % (b"x" * (size + end), call)
        assert not peek(body, paths.MESSAGES).media_url


def test_a_text_that_cannot_be_read_hides_nothing() -> None:
    """One that is no UTF-8."""
    assert peek(b'{"x": "\xff", "image_url": "https://x"}', paths.CHAT).media_url


@pytest.mark.parametrize(
    "part",
    [b'"image_url"', b'{"image_url":"data:"}', b'{"image_url":{}}', b'{"image_url":1}'],
    ids=["values", "texts", "objects", "neither"],
)
@pytest.mark.parametrize("path", [paths.CHAT, paths.MESSAGES])
def test_a_body_of_too_many_media_is_refused(part: bytes, path: str) -> None:
    """Each costs some time."""
    body = b'{"model": "m", "x": [' + b",".join([part] * MAX_PLACES) + b"]}"
    assert peek(body, path).media_url is False
    with pytest.raises(ClientError) as caught:
        peek(body.replace(b"]", b"," + part + b"]"), path)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


def test_media_inside_media_is_refused_where_it_would_be_read_often() -> None:
    """A few hundred levels of it cost a few hundred readings."""
    nested = b'{"image_url":' * 300 + b'"data:"' + b"}" * 300
    assert peek(b'{"x": {"image_url": {"image_url": {"url": "data:"}}}}', paths.CHAT).media_url is False
    with pytest.raises(ClientError) as caught:
        peek(b'{"x": %b}' % nested, paths.CHAT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


def test_a_tool_call_among_very_many_objects_is_refused() -> None:
    """Looking for it would take long; only where a URL was found."""
    call = b'{"type": "tool_use", "input": {"image_url": "%b"}}'
    body = b'{"messages": [{"content": [%b, %b]}]}' % (call, b",".join([b"{}"] * MAX_OBJECTS))
    assert peek(body % b"data:", paths.MESSAGES).media_url is False
    with pytest.raises(ClientError) as caught:
        peek(body % b"https:", paths.MESSAGES)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([DATA, "https://x", "", None, 1, True, 'x"image_url": "https://x', '\\"image_url', "image_url\\"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image_url", "video_url", "url", "source", "type", "x_url", "image_url\\", '"image_url']),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


def walked(value: Any, *, anthropic: bool) -> bool:
    """The same question, asked of every object."""
    if isinstance(value, list):
        return any(walked(item, anthropic=anthropic) for item in value)
    if not isinstance(value, dict):
        return False
    for key, item in value.items():
        if key in MEDIA_KEYS or (anthropic and key == "source" and isinstance(item, dict)):
            url = item.get("url") if isinstance(item, dict) else item
            if isinstance(url, str) and not url.startswith("data:"):
                return True
    return any(walked(item, anthropic=anthropic) for item in value.values())


@settings(max_examples=300)
@given(value=VALUES, escape=st.booleans(), anthropic=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_search_agrees_with_a_walk(value: Any, escape: bool, anthropic: bool, indent: int | None) -> None:
    """However the keys and texts are written."""
    body = json.dumps({"model": "m", "x": value}, indent=indent).encode()
    if escape:
        body = body.replace(b"source", b"s\\u006Furce").replace(b"e_url", b"\\u0065_url")
    try:
        found = peek(body, paths.MESSAGES if anthropic else paths.CHAT).media_url
    except ClientError:  # media inside media inside media
        return
    assert found == walked(value, anthropic=anthropic)
