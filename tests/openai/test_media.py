"""Media that vLLM would fetch over the network, from inside the cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.media import (
    _LONGEST_KEY,
    MAX_DEPTH,
    MAX_OBJECTS,
    MAX_PLACES,
    MAX_QUOTES,
    MEDIA_KEYS,
    READ,
)
from aiaas.openai.peek import peek
from aiaas.openai.windows import WINDOW

DATA = "data:image/png;base64,aGk="
URL = "https://example.com/a.png"
PART = {"type": "image_url", "image_url": {"url": URL}}
INPUT_IMAGE = {"type": "input_image", "image_url": URL}
SOURCE = {"type": "image", "source": {"type": "url", "url": URL}}
FIELD = {paths.CHAT: "messages", paths.MESSAGES: "messages", paths.RESPONSES: "input"}


def found(body: Any, path: str = paths.CHAT) -> str | None:
    """Where a URL is, in a body as bytes or as a value."""
    return peek(body if isinstance(body, bytes) else json.dumps({"model": "m"} | body).encode(), path).media_url


def content(parts: Any) -> dict[str, Any]:
    """A chat request with this content."""
    return {"messages": [{"role": "user", "content": parts}]}


def refused(body: bytes, path: str = paths.CHAT) -> None:
    """A 400 that says that there is too much."""
    with pytest.raises(ClientError, match="too many values") as caught:
        peek(body, path)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


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
        ("\tdata:,x", True),
        ("HTTP://EXAMPLE.COM", True),
        ("hTTps://example.com", True),
        ("datax:", True),
        ("", True),
    ],
)
@pytest.mark.parametrize("shape", ["object", "string"])
@pytest.mark.parametrize("typed", [True, False])
def test_only_data_urls_pass(kind: str, url: str, fetched: bool, shape: str, typed: bool) -> None:
    """Any URL that does not begin with `data:` would be fetched, in all shapes that vLLM reads."""
    part = ({"type": kind} if typed else {"uuid": "x"}) | {kind: {"url": url} if shape == "object" else url}
    assert found(content([{"type": "text", "text": "x"}, part])) == (
        f"messages[0].content[1].{kind}" if fetched else None
    )


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (paths.CHAT, {"messages": [{"content": "x"}, {"content": ["x", PART]}]}, "messages[1].content[1].image_url"),
        (paths.CHAT, {"messages": [{"role": "system", "content": [PART]}]}, "messages[0].content[0].image_url"),
        (paths.CHAT, {"messages": [{"role": "tool", "content": [PART]}]}, "messages[0].content[0].image_url"),
        (paths.CHAT, {"messages": [{"content": PART}]}, "messages[0].content.image_url"),
        (paths.CHAT, content([PART | {"type": "text", "text": "x"}]), "messages[0].content[0].image_url"),
        (paths.CHAT, content([5, PART]), "messages[0].content"),
        (paths.CHAT, {"messages": PART}, "messages.image_url"),
        (paths.TOKENIZE, content([PART]), "messages[0].content[0].image_url"),
        (paths.EMBEDDINGS, content([PART]), "messages[0].content[0].image_url"),
        (paths.EMBEDDINGS, {"messages": [content([PART])["messages"]]}, "messages[0][0].content[0].image_url"),
        (paths.EMBEDDINGS, {"input": content([PART])["messages"]}, "input[0].content[0].image_url"),
        (paths.EMBEDDINGS, {"input": [content([PART])["messages"]]}, "input[0][0].content[0].image_url"),
        (paths.SCORE, {"text_1": "x", "text_2": [{"content": [PART]}]}, "text_2[0].content[0].image_url"),
        (paths.SCORE, {"queries": {"content": [PART]}, "documents": "x"}, "queries.content[0].image_url"),
        (paths.SCORE, {"data_1": {"content": [PART]}}, "data_1.content[0].image_url"),
        (paths.RERANK, {"query": "x", "documents": ["x", {"content": [PART]}]}, "documents[1].content[0].image_url"),
        (paths.PLAIN_SCORE, {"text_1": "x", "text_2": [{"content": [PART]}]}, "text_2[0].content[0].image_url"),
        (paths.V2_RERANK, {"query": {"content": [PART]}, "documents": ["x"]}, "query.content[0].image_url"),
        (paths.PLAIN_RERANK, {"query": "x", "documents": [{"content": [PART]}]}, "documents[0].content[0].image_url"),
        (paths.CLASSIFY, content([PART]), "messages[0].content[0].image_url"),
        (paths.POOLING, content([PART]), "messages[0].content[0].image_url"),
        (paths.COUNT_TOKENS, content([SOURCE]), "messages[0].content[0].source"),
        (paths.V2_EMBED, {"inputs": [{"content": [{"type": "text"}, PART]}]}, "inputs[0].content[1].image_url"),
        (paths.V2_EMBED, {"images": [DATA, URL]}, "images[1]"),
        (paths.RESPONSES, {"input": [{"role": "user", "content": [INPUT_IMAGE]}]}, "input[0].content[0].image_url"),
        (
            paths.RESPONSES,
            {"input": [{"type": "function_call_output", "call_id": "x", "output": [INPUT_IMAGE]}]},
            "input[0].output[0].image_url",
        ),
        (
            paths.RESPONSES,
            {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}]},
            "input[0].output.image_url",
        ),
        (paths.RESPONSES, {"input": [INPUT_IMAGE]}, "input[0].image_url"),
        (paths.RESPONSES, {"input": "x", "previous_input_messages": [{"content": [INPUT_IMAGE]}]},
         "previous_input_messages[0].content[0].image_url"),
        (paths.MESSAGES, content([SOURCE]), "messages[0].content[0].source"),
        (
            paths.MESSAGES,
            content([{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text"}, SOURCE]}]),
            "messages[0].content[0].content[1].source",
        ),
        (paths.MESSAGES, content([SOURCE | {"type": "document"}]), "messages[0].content[0].source"),
        (paths.MESSAGES, {"system": [SOURCE], "messages": []}, "system[0].source"),
        (paths.MESSAGES, content([PART]), "messages[0].content[0].image_url"),
    ],
)  # fmt: skip
def test_a_url_is_found_where_vllm_reads_content(path: str, body: dict[str, Any], place: str) -> None:
    """The error names it; for an unknown shape, the list or object that it is in."""
    assert found(body, path) == place
    assert found(json.dumps(body).replace(URL, DATA).encode(), path) is None


SCHEMA = {"type": "object", "properties": {"image_url": {"type": "string", "default": URL, "url": URL}}}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": {"image_url": URL}}}
TOOL_USE = {"type": "tool_use", "id": "x", "name": "f", "input": {"image_url": URL, "source": {"url": URL}}}


@pytest.mark.parametrize("path", [paths.CHAT, paths.RESPONSES, paths.MESSAGES])
@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
        {"tools": [{"name": "f", "input_schema": SCHEMA | {"source": {"url": URL}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"metadata": {"image_url": URL, "source": {"url": URL}}},
        {"image_url": URL, "source": {"url": URL}},
        {"chat_template_kwargs": {"content": [PART]}},
        {"instructions": '"image_url": "https://x"'},
    ],
    ids=["tool", "Anthropic tool", "response_format", "text.format", "metadata", "top level", "kwargs", "text"],
)
def test_name_outside_the_content_is_not_media(path: str, fields: dict[str, Any]) -> None:
    """Beside a conversation that shows an image."""
    shown = {"type": "image", "source": {"type": "base64", "data": "aGk="}, "image_url": {"url": DATA}}
    assert found({FIELD[path]: [{"role": "user", "content": [shown]}]} | fields, path) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (paths.CHAT, {"role": "assistant", "tool_calls": [CALL]}),
        (paths.CHAT, {"role": "assistant", "content": None, "function_call": {"arguments": {"image_url": URL}}}),
        (paths.CHAT, {"role": "assistant", "tool_calls": [{"function": {"arguments": json.dumps(PART)}}]}),
        (paths.CHAT, {"role": "user", "content": "x", "metadata": {"image_url": URL}}),
        (paths.CHAT, {"role": "developer", "content": "x", "tools": [{"function": {"parameters": SCHEMA}}]}),
        (paths.CHAT, {"role": "user", "content": [{"type": "text", "text": json.dumps(PART)}]}),
        (paths.CHAT, {"role": "user", "content": [{"type": "text", "text": "x", "annotations": [PART]}]}),
        (paths.CHAT, {"role": "user", "content": '{"image_url": "https://x"}'}),
        (paths.CHAT, {"role": "user", "content": ["image_url", URL]}),
        (paths.CHAT, {"role": "user", "content": [{"type": "image_url", "image_url": None}]}),
        (paths.CHAT, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": {"url": URL}}}]}),
        (paths.RESPONSES, {"type": "function_call", "name": "f", "arguments": '{"image_url": "https://x"}'}),
        (paths.RESPONSES, {"type": "function_call_output", "output": '{"image_url": "https://x"}'}),
        (paths.RESPONSES, {"type": "mcp_list_tools", "tools": [{"input_schema": SCHEMA}]}),
        (paths.MESSAGES, {"role": "assistant", "content": [TOOL_USE]}),
        (paths.MESSAGES, {"role": "assistant", "content": [TOOL_USE, TOOL_USE | {"input": {"content": [SOURCE]}}]}),
        (paths.MESSAGES, {"role": "user", "content": [{"type": "search_result", "source": URL, "content": []}]}),
    ],
)
def test_tool_arguments_are_not_media(path: str, message: dict[str, Any]) -> None:
    """Nor are the other fields of a message, nor a text."""
    assert found({FIELD[path]: [message]}, path) is None
    assert found({FIELD[path]: [message, {"content": [PART]}]}, path) == f"{FIELD[path]}[1].content[0].image_url"


def test_a_completion_has_no_media() -> None:
    """Its prompt is text or tokens; vLLM ignores other fields."""
    for path in (paths.COMPLETIONS, paths.DETOKENIZE):
        assert found({"prompt": "x"} | content([PART]), path) is None


def test_each_path_says_what_it_reads() -> None:
    """A new path cannot be forgotten."""
    assert set(READ) == set(paths.GENERATE)


CSV = "\n".join(f'{number},"name, {number}","{{""a"": [{number}]}}",2026-01-01' for number in range(8000))[:308_000]


@pytest.mark.parametrize("shown", [DATA, "data:image/png;base64," + "A" * 300_000])
def test_a_screenshot_beside_a_long_text_passes(shown: str) -> None:
    """308 kB of CSV, or of JSON, whichever comes first."""
    for text in (CSV, json.dumps([{"image_url": URL}] * 9000)):
        parts: list[Any] = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": shown}}]
        assert found(content(parts)) is None
        assert found(content(parts[::-1])) is None
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
        assert found(content([{"type": "text", "text": text}, TOOL_USE, image]), paths.MESSAGES) is None
        assert found(content([*parts, PART])) == "messages[0].content[2].image_url"


def test_calling_a_request_a_tool_call_hides_nothing() -> None:
    """Only a part's own input is data."""
    body = {"type": "tool_use", "input": [{"type": "tool_use", "content": [INPUT_IMAGE]}]}
    assert found(body, paths.RESPONSES) == "input[0].content[0].image_url"
    assert found(content([TOOL_USE | SOURCE]), paths.MESSAGES) == "messages[0].content[0].source"
    assert found(content([TOOL_USE, {"type": "tool_use", "content": [SOURCE]}]), paths.MESSAGES)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (paths.CHAT, b'{"m\\u0065ssages": [{"c\\u006fntent": [{"image_\\u0075rl": "https://x"}]}]}'),
        (paths.CHAT, b'{"messages": [{"content": [{"image_url": {"u\\u0072l": "https://x"}}]}]}'),
        (paths.CHAT, b'{"messages": [{"content": [{"image_url": "\\u0064ata:,x"}]}]}'),
        (paths.CHAT, b'{"messages": [{"content": [{"image_url": "\\u0068ttps://x"}]}]}'),
        (paths.MESSAGES, b'{"messages": [{"content": [{"s\\u006furce": {"url": "https://x"}}]}]}'),
        (paths.RESPONSES, b'{"in\\u0070ut": [{"outp\\u0075t": [{"image_url": "https://x"}]}]}'),
    ],
)
def test_escapes_hide_nothing(path: str, body: bytes) -> None:
    """Escapes of a field, a key or a URL."""
    assert found(body, path) is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"content": [{"image_url": "%b", "image_url": "%b"}]}]}',
        b'{"messages": [{"content": [{"image_url": {"url": "%b"}, "image_url": {"url": "%b"}}]}]}',
        b'{"messages": [{"content": [{"image_url": {"url": "%b", "url": "%b"}}]}]}',
        b'{"messages": [{"content": [{"image_url": {"url": "%b", "\\u0075rl": "%b"}}]}]}',
        b'{"messages": [{"content": [{"image_url": "%b"}], "content": [{"image_url": "%b"}]}]}',
        b'{"messages": [{"content": [{"image_url": "%b"}]}], "messages": [{"content": [{"image_url": "%b"}]}]}',
    ],
    ids=["part", "objects", "url", "escaped url", "content", "messages"],
)
def test_each_of_two_equal_keys_counts(body: bytes) -> None:
    """Whichever of the two vLLM's parser takes."""
    for first, second, fetched in (
        (b"data:,x", b"https://x", True),
        (b"https://x", b"data:,x", True),
        (b"data:,x", b"data:,x", False),
    ):
        assert (found(body % (first, second)) is not None) is fetched


@pytest.mark.parametrize(
    "text",
    [
        b'"a \\"image_url": "https://x"', b'"a \\\\\\"image_url": "https://x"', b'"image_url\\": https://x"',
        b'"image_url \\" : \\"https://x"', b'["image_url", "https://x"]', b'{"x": "image_url", "y": "https://x"}',
        b'"\\\"image_url"', b'{"image\\_url": 1}',
    ],
)  # fmt: skip
def test_text_that_only_looks_like_a_media_key_is_ignored(text: bytes) -> None:
    """The end of a text, the beginning of one, or a value."""
    part = b"{%b}" % text if b'": ' in text and text[:1] == b'"' else text
    body = b'{"model": "m", "messages": [{"content": [%b]}]}' % part
    try:
        json.loads(body)
    except ValueError:
        return
    if not text.startswith(b"["):
        assert found(body) is None


@pytest.mark.parametrize("before", [b"\\\\", b"\\\\\\\\", b"a\\\\", b"\\n", b""])
def test_a_key_behind_a_text_that_ends_with_backslashes_is_found(before: bytes) -> None:
    """Only an odd number of them escapes a quote."""
    body = b'{"messages": [{"x": "%b", "content": [{"%b":1,"image_url":"https://x"}]}]}' % (before, before)
    json.loads(body)
    assert found(body) == "messages[0].content[0].image_url"


@pytest.mark.parametrize("space", [b"", b" ", b"\n\t\r "])
@pytest.mark.parametrize("rest", [b"}", b',"z":1}', b' , "z": {"a": [1, {}]}}'])
def test_an_object_is_read_to_its_end_and_no_further(space: bytes, rest: bytes) -> None:
    """Wherever the object is, with other fields before and behind the URL."""
    for url, fetched in ((DATA.encode(), False), (b"https://x", True)):
        media = b'{"a": [{"url": 1}, "}"], "url"%b:%b"%b", "detail": {"url": "https://y"}}' % (space, space, url)
        part = b'{"image_url"%b:%b%b%b' % (space, space, media, rest)
        body = b'{"messages": [ {"content"%b:%b[{}, %b]}]}' % (space, space, part)
        json.loads(body)
        assert found(body) == ("messages[0].content[1].image_url" if fetched else None)


@pytest.mark.parametrize("size", [0, WINDOW - 60, WINDOW - 30, WINDOW - 10, WINDOW, 3 * WINDOW])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_key_is_found_once_wherever_it_stands(size: int, escaped: bool) -> None:
    """Also across the end of a window, and in the longest form."""
    key = b"image_url"
    if escaped:
        key = "".join(f"\\u{letter:04X}" for letter in key).encode()
        assert len(key) + 2 <= _LONGEST_KEY
    for end in range(0, 60, 7):
        body = b'{"x": "%b", "messages": [{"content": [{"%b": "%b"}]}]}' % (b"x" * (size + end), key, b"https://x")
        assert found(body) == "messages[0].content[0].image_url"
        assert found(body.replace(b"https://x", DATA.encode())) is None
        call = b'{"type": "tool_use", "input": {"%b": "https://x"}}' % key
        body = b'{"x": "%b", "messages": [{"content": [%b]}]}' % (b"x" * (size + end), call)
        assert found(body, paths.MESSAGES) is None


def test_a_text_that_cannot_be_read_hides_nothing() -> None:
    """A text with invalid UTF-8, elsewhere or in the same list."""
    part = b'{"image_url": "https://x"}'
    assert found(b'{"x": "\xff", "messages": [{"content": [%b]}]}' % part) == "messages[0].content[0].image_url"
    assert found(b'{"messages": [{"content": ["\xff", %b]}]}' % part) == "messages[0].content"


@pytest.mark.parametrize(
    "part",
    [b'"image_url"', b'{"image_url":"data:"}', b'{"image_url":{}}', b'{"image_url":1}'],
    ids=["values", "texts", "objects", "neither"],
)
@pytest.mark.parametrize("path", [paths.CHAT, paths.MESSAGES])
def test_a_body_of_too_many_media_is_refused(part: bytes, path: str) -> None:
    """Each costs some time."""
    body = b'{"model": "m", "x": [' + b",".join([part] * MAX_PLACES) + b"]}"
    assert found(body, path) is None
    refused(body.replace(b"]", b"," + part + b"]"), path)


def test_nested_media_is_refused_where_it_would_be_read_often() -> None:
    """A few hundred levels of it cost a few hundred readings."""
    nested = b'{"image_url":' * 300 + b'"data:"' + b"}" * 300
    assert found(b'{"x": {"image_url": {"image_url": {"url": "data:"}}}}') is None
    refused(b'{"x": %b}' % nested)


def test_a_url_among_very_many_fields_is_refused() -> None:
    """Each field costs some time; only where there is a URL."""
    body = b'{"messages": [{"content": [{%b "image_url": "%b"}]}]}'
    assert found(body % (b'"":1,' * MAX_OBJECTS, b"data:")) is None
    refused(body % (b'"":1,' * MAX_OBJECTS, b"https:"))


@pytest.mark.parametrize("item", [b"{}", b"[]", b'{"":1}', b'""'])
def test_a_url_among_very_many_values_is_refused(item: bytes) -> None:
    """Looking for the URL would take long; only where there is one."""
    many = b",".join([item] * (MAX_QUOTES // 2 + 1 if item == b'""' else MAX_OBJECTS + 1))
    body = b'{"messages": [{"content": [{"image_url": "%b"}, ' + many.replace(b"%", b"%%") + b"]}]}"
    assert found(body % b"data:", paths.MESSAGES) is None
    refused(body % b"https:", paths.MESSAGES)


def test_content_inside_content_is_followed_to_its_depth() -> None:
    """Content beyond vLLM's own depth counts, whatever it is."""
    body: Any = {"image_url": "https://x"}
    for _ in range(MAX_DEPTH - 1):
        body = {"content": [body]}
    assert found({"messages": [body]}) == "messages[0]" + ".content[0]" * (MAX_DEPTH - 1) + ".image_url"
    deep = json.dumps({"messages": [{"content": [body]}]}).replace("image_url", "x").replace("https://x", "image_url")
    assert found({"messages": [{"content": [body]}]}) == "messages[0]" + ".content[0]" * (MAX_DEPTH - 1) + ".content"
    assert found(deep.encode()) is None


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([DATA, "https://x", "", None, 1, True, 'x"image_url": "https://x', '\\"image_url', "image_url\\"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "image_url",
                    "video_url",
                    "url",
                    "source",
                    "type",
                    "x_url",
                    "content",
                    "output",
                    "input",
                    "image_url\\",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


def walked(value: Any, *, anthropic: bool) -> bool:
    """The same question, asked of every part; a list of other values counts where a part could be in it."""
    if isinstance(value, list):
        return any(walked(item, anthropic=anthropic) for item in value)
    if not isinstance(value, dict):
        return False
    for key, item in value.items():
        if key in MEDIA_KEYS or (anthropic and key == "source" and isinstance(item, dict)):
            url = item.get("url") if isinstance(item, dict) else item
            if isinstance(url, str) and not url.startswith("data:"):
                return True
    return any(walked(value[key], anthropic=anthropic) for key in ("content", "output") if key in value)


def anywhere(value: Any, *, anthropic: bool) -> bool:
    """Whether such a URL is anywhere at all."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = isinstance(value, dict) and walked(
        {key: item for key, item in value.items() if key not in ("content", "output")}, anthropic=anthropic
    )
    return here or any(anywhere(item, anthropic=anthropic) for item in inner)


@settings(max_examples=500)
@given(value=VALUES, escape=st.booleans(), anthropic=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_search_agrees_with_a_walk(value: Any, escape: bool, anthropic: bool, indent: int | None) -> None:
    """However the keys and texts are written: the search finds the URLs that vLLM reads, and no others."""
    body = json.dumps({"model": "m", "messages": value}, indent=indent).encode()
    if escape:
        body = body.replace(b"source", b"s\\u006Furce").replace(b"e_url", b"\\u0065_url")
    try:
        place = found(body, paths.MESSAGES if anthropic else paths.CHAT)
    except ClientError:  # media inside media inside media
        return
    if walked(value, anthropic=anthropic):
        assert place is not None
    elif place is not None:  # a shape that vLLM refuses, with a URL somewhere in it
        assert escape or anywhere(value, anthropic=anthropic)
        assert place[-1] == "]" or place.rpartition(".")[2] in ("messages", "content", "output")


@pytest.mark.parametrize(
    ("images", "place"),
    [
        (b'["DATA:a"]', None),
        (b"null", None),
        (b"[]", None),
        (b'["\\u0064ata:a"]', None),
        (b'["file:///etc/passwd"]', "images[0]"),
        (b'[" data:a"]', "images[0]"),
        (b'"http://a"', "images"),
        (b'[["http://a"]]', "images"),
    ],
)
def test_entries_of_images_are_addresses_themselves(images: bytes, place: str | None) -> None:
    """On `/v2/embed` vLLM fetches each entry; a shape that it refuses is reported as a whole."""
    assert found(b'{"texts":null,"images":%b}' % images, paths.V2_EMBED) == place
    assert found(b'{"image\\u0073":%b}' % images, paths.V2_EMBED) == place
    assert found(b'{"images":%b}' % images, paths.EMBEDDINGS) is None
