"""The facts that the gateway reads from a request body, and its refusals where vLLM might read something else."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.lenient import truth, whole
from aiaas.openai.peek import LARGEST_COUNTED, LARGEST_INTERVAL, MAX_PROMPTS, Peek, estimate_input_tokens, peek

CHAT = paths.CHAT
READ = ["model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "background"]


def refused(body: bytes, path: str = CHAT) -> tuple[str, str | None]:
    with pytest.raises(ClientError) as caught:
        peek(body, path)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


@pytest.mark.parametrize("written", ["1000001", '"99999999999999999999"'])
def test_an_interval_longer_than_any_answer_is_cut(written: str) -> None:
    """The tokens of a cut stream are estimated by it."""
    assert peek(f'{{"stream_interval": {written}}}'.encode(), CHAT).stream_interval == LARGEST_INTERVAL


def test_a_chat_request_is_read() -> None:
    """The fields of an ordinary chat request come out as written."""
    body = {
        "model": "gpt-oss-20b",
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 3,
        "max_tokens": 7,
    }
    assert peek(json.dumps(body).encode(), CHAT) == Peek(
        model="gpt-oss-20b",
        stream=True,
        include_usage=True,
        has_stream_options=True,
        choices=3,
        prompts=1,
        max_output=7,
        max_output_field="max_tokens",
        background=False,
        media_url=None,
        plain=True,
    )


@pytest.mark.parametrize("body", [b"{}", b' {"model": null, "n": null, "stream": null, "max_tokens": null}\r\n'])
def test_null_counts_as_absent(body: bytes) -> None:
    """A field that is null reads as one that is not there."""
    assert peek(body, CHAT) == Peek(None, False, False, False, 1, 1, None, None, False, None, plain=True)


def test_an_empty_model_counts_as_absent() -> None:
    """vLLM takes its first model for an empty name, so an empty name counts as missing."""
    assert peek(b'{"model": ""}', CHAT).model is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="text"),
        pytest.param(b'{"model": "a"', id="cut"),
        pytest.param(b'{"model": "a"} {}', id="trailing"),
        pytest.param(b'{"model": "a",}', id="trailing comma"),
        pytest.param(b'{"model": "\xff"}', id="model not utf-8"),
        pytest.param(b'{"model": "a", "temperature": NaN}', id="NaN"),
        pytest.param(b'{"model": "a", "temperature": -Infinity}', id="infinity"),
        pytest.param(b'{"model": "\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"model": "a", "x": "\\udc00 "}', id="lone low surrogate in an unread field"),
        pytest.param(b"{'model': 'a'}", id="single quotes"),
    ],
)
def test_invalid_json_is_refused(body: bytes) -> None:
    """Bytes that are not JSON, or that two parsers may take differently, are `invalid_json`."""
    assert refused(body) == ("invalid_json", None)


@pytest.mark.parametrize("body", [b"[]", b"5", b'"a"', b"null", b'[{"model": "a"}]'])
def test_json_other_than_an_object_is_refused(body: bytes) -> None:
    """A body that is JSON but not an object is `invalid_request`."""
    assert refused(body) == ("invalid_request", None)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("key", ["messages", "prompt", "stream_options"])
def test_deep_nesting_is_refused(key: str, opening: bytes) -> None:
    """A body nested a hundred thousand deep is refused, and does not take the process with it."""
    body = b'{"model": "a", "' + key.encode() + b'": ' + opening * 100_000
    assert refused(body, paths.COMPLETIONS)[0] == "invalid_request"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "5"),
        ("model", '["a"]'),
        ("stream", '"maybe"'),
        ("n", "8.5"),
        ("n", "0"),
        ("n", '"0"'),
        ("n", "-1"),
        ("max_tokens", "-1"),
        ("max_tokens", "1" + "0" * 400),
        ("max_tokens", "1" + "0" * 5000),
        ("max_completion_tokens", "0"),
        ("stream_options", "true"),
        ("stream_options", "[]"),
    ],
)
def test_a_wrong_type_is_refused_with_its_field(field: str, value: str) -> None:
    """A field that vLLM refuses is refused here, and named in `param`. `lenient_table.py` has converted values."""
    assert refused(f'{{"model": "a", "{field}": {value}}}'.encode()) == ("invalid_request", field)


def test_a_nested_wrong_type_is_named_in_dotted_form() -> None:
    """`param` leads to the field inside an object."""
    assert refused(b'{"stream_options": {"include_usage": 5}}') == ("invalid_request", "stream_options.include_usage")


@pytest.mark.parametrize("field", READ)
@pytest.mark.parametrize("second", ["plain", "escaped", "null first"])
def test_a_repeated_field_is_refused(field: str, second: str) -> None:
    """A field that we read and that comes twice is refused, also where its key is written with escapes."""
    values: dict[str, Any] = {"model": '"a"', "stream": "true", "background": "true"}
    value = values.get(field, "2")
    key = "".join(f"\\u{ord(c):04x}" for c in field) if second == "escaped" else field
    body = f'{{"{field}": {"null" if second == "null first" else value}, "x": 1, "{key}": {value}}}'
    assert refused(body.encode(), paths.RESPONSES) == ("invalid_request", field)


@pytest.mark.parametrize("size", [0, LARGEST_COUNTED], ids=["small", "large"])
@pytest.mark.parametrize(
    "options",
    [
        b'{"include_usage":false,"include_usage":true}',
        b'{"include_usage":true,"x":{},"\\u0069nclude_usage":false}',
        b'{ "include_usage" : null, "include_usage" : null }',
    ],
    ids=["plain", "escaped", "null"],
)
def test_repeated_include_usage_is_refused(options: bytes, size: int) -> None:
    """We read the field, and write it."""
    body = b'{"x":"%b","stream_options":%b}' % (b"x" * size, options)
    assert refused(body) == ("invalid_request", "stream_options.include_usage")


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream_options":{"include_usage":true},"metadata":{"include_usage":false}}',
        b'{"metadata":{"include_usage":1,"include_usage":2},"stream_options":{"include_usage":true}}',
        b'{"stream_options":{"x":{"include_usage":1,"include_usage":2},"include_usage":true}}',
        b'{"stream_options":{"x":1,"x":2,"include_usage":true}}',
        b'{"user":"\\u0061","stream_options":{"include_usage":true}}',
    ],
    ids=["elsewhere", "twice elsewhere", "below it", "another option twice", "an escape elsewhere"],
)
def test_include_usage_is_read_at_its_place(body: bytes) -> None:
    """The same name elsewhere does not count."""
    assert peek(body, CHAT).include_usage


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model": "a", "messages": [{"model": "b"}, {"model": "c"}]}', id="nested key"),
        pytest.param(b'{"role": "model", "model": "a"}', id="value"),
        pytest.param(b'{"text": "say \\"model", "model": "a"}', id="end of a text"),
        pytest.param(b'{"text": "caf\\u006d", "model": "a"}', id="escaped letter in a text"),
        pytest.param(b'{"foo": 1, "foo": 2, "model": "a"}', id="another field twice"),
        pytest.param(b'{"mod\\u0065l": "a"}', id="escaped once"),
        pytest.param(b'{"\\u006d\\u006F\\u0064el": "a"}', id="escaped with capitals"),
    ],
)
def test_apparently_repeated_field_is_read(body: bytes) -> None:
    """The same name below the top level, in a value or in a text does not count."""
    assert peek(body, CHAT).model == "a"


def test_too_many_fields_are_refused_on_the_slow_path() -> None:
    """A million fields cannot make the duplicate check expensive."""
    fields = b",".join(b'"x%d": 1' % number for number in range(2000))
    assert refused(b'{"mod\\u0065l": "a",' + fields + b"}") == ("invalid_request", None)


@pytest.mark.parametrize(
    ("path", "fields", "bound", "field"),
    [
        (paths.CHAT, {"max_tokens": 5}, 5, "max_tokens"),
        (paths.CHAT, {"max_completion_tokens": 9}, 9, "max_completion_tokens"),
        (paths.CHAT, {"max_completion_tokens": 9, "max_tokens": 5}, 9, "max_completion_tokens"),
        (paths.CHAT, {"max_output_tokens": 9}, None, None),
        (paths.COMPLETIONS, {"max_tokens": 5, "max_completion_tokens": 9}, 5, "max_tokens"),
        (paths.COMPLETIONS, {"max_tokens": 0}, 0, "max_tokens"),
        (paths.RESPONSES, {"max_output_tokens": 9, "max_tokens": 5}, 9, "max_output_tokens"),
        (paths.RESPONSES, {"max_tokens": 5}, None, None),
        (paths.MESSAGES, {"max_tokens": 5}, 5, "max_tokens"),
        (paths.EMBEDDINGS, {"max_tokens": 5}, None, None),
    ],
)
def test_the_bound_is_the_one_that_vllm_obeys(
    path: str, fields: dict[str, int], bound: int | None, field: str | None
) -> None:
    """vLLM's chat takes `max_completion_tokens` before `max_tokens`, even where larger; others know only their own."""
    read = peek(json.dumps(fields).encode(), path)
    assert (read.max_output, read.max_output_field) == (bound, field)


@pytest.mark.parametrize(
    ("fields", "choices"), [({"n": 3}, 3), ({"best_of": 4, "n": 2}, 4), ({"best_of": 1, "n": 2}, 2), ({}, 1)]
)
def test_choices_are_the_larger_of_n_and_best_of(fields: dict[str, int], choices: int) -> None:
    """Both multiply the output."""
    assert peek(json.dumps(fields).encode(), paths.COMPLETIONS).choices == choices


@pytest.mark.parametrize(
    ("path", "body", "prompts"),
    [
        (paths.COMPLETIONS, '{"prompt": "hi"}', 1),
        (paths.COMPLETIONS, '{"prompt": ["hi"]}', 1),
        (paths.COMPLETIONS, '{"prompt": ["a", "b, c", "[d, e"]}', 3),
        (paths.COMPLETIONS, '{"prompt": [1, 2, 3]}', 1),
        (paths.COMPLETIONS, '{"prompt": [ \\n -1, 2]}'.replace("\\n", "\n"), 1),
        (paths.COMPLETIONS, '{"prompt": [[1, 2], [3]]}', 2),
        (paths.COMPLETIONS, '{"prompt": []}', 1),
        (paths.COMPLETIONS, '{"prompt": [ ]}', 1),
        (paths.COMPLETIONS, '{"prompt": ["", " ", ""]}', 3),
        (paths.COMPLETIONS, r'{"prompt": ["a\"b", "\",\"", "c"]}', 3),
        (paths.COMPLETIONS, r'{"prompt": ["a\\", "\\\"", "\\\\", ""]}', 4),
        (paths.COMPLETIONS, '{"prompt": [ [ ], [1] , [2, 3]]}', 3),
        (paths.COMPLETIONS, '{"prompt": [null, {"a": 1}]}', 2),
        (paths.COMPLETIONS, '{"prompt": null}', 1),
        (paths.COMPLETIONS, '{"prompt": null, "prompt_embeds": ["x", "y"]}', 2),
        (paths.COMPLETIONS, '{"prompt": ["a", "b"], "prompt_embeds": ["x"]}', 3),
        (paths.COMPLETIONS, '{"prompt_embeds": "x"}', 1),
        (paths.EMBEDDINGS, '{"input": ["a", "b"]}', 2),
        (paths.EMBEDDINGS, '{"input": [1, 2]}', 1),
        (paths.CHAT, '{"prompt": ["a", "b"]}', 1),
        (paths.RESPONSES, '{"input": [{"role": "user"}, {"role": "user"}]}', 1),
    ],
)
def test_prompts_are_counted(path: str, body: str, prompts: int) -> None:
    """A list of texts or of token lists is many prompts; a list of token ids is one."""
    assert peek(body.encode(), path).prompts == prompts


@given(
    st.lists(st.text('a\\"[]{},: \n\u00e9'), min_size=1), st.booleans(), st.sampled_from([(",", ":"), (" ,\n", " : ")])
)
def test_texts_are_counted_whatever_stands_in_them(texts: list[str], ascii_only: bool, separators: Any) -> None:
    """Quotes, backslashes, brackets and commas of a text are no ends of it."""
    body = json.dumps({"input": texts}, ensure_ascii=ascii_only, separators=separators).encode()
    assert peek(body, paths.EMBEDDINGS).prompts == len(texts)


@pytest.mark.parametrize("field", ["prompt", "prompt_embeds", "input"])
@pytest.mark.parametrize("item", ['""', '"\\\\"', "[]", "[1]", "null", "{}"])
def test_more_prompts_than_any_batch_has_are_refused_by_name(field: str, item: str) -> None:
    """The largest number passes."""
    path = paths.EMBEDDINGS if field == "input" else paths.COMPLETIONS

    def body(count: int) -> bytes:
        return f'{{"{field}": [{",".join([item] * count)}]}}'.encode()

    assert peek(body(MAX_PROMPTS), path).prompts == MAX_PROMPTS
    assert refused(body(MAX_PROMPTS + 1), path) == ("invalid_request", field)


def test_a_million_token_ids_are_one_prompt() -> None:
    """As long as the longest context; in a list of lists too the ids do not count."""
    ids = ",".join(["12345"] * 1_000_000)
    assert peek(f'{{"prompt": [{ids}]}}'.encode(), paths.COMPLETIONS).prompts == 1
    assert peek(f'{{"input": [[{ids}], [1]]}}'.encode(), paths.EMBEDDINGS).prompts == 2


@pytest.mark.parametrize("item", ['""', "[]", "1", "null", "{}", '"prompt"', '"\\\\"', '"\\""'])
@pytest.mark.parametrize("first", ["", '"",', "1,", "[1],"])
def test_list_of_many_values_takes_no_more_memory_than_the_body(first: str, item: str) -> None:
    """Refused or not: building each value took twenty times the body, and stopped everybody for its time."""
    body = f'{{"model": "m", "prompt": [{first}{",".join([item] * 200_000)}]}}'.encode()
    tracemalloc.start()
    with contextlib.suppress(ClientError):
        peek(body, paths.COMPLETIONS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(body) + 2**16


def test_a_repeated_prompt_is_refused() -> None:
    """vLLM would count the last, whichever we had counted."""
    assert refused(b'{"prompt": "a", "prompt": ["a", "b"]}', paths.COMPLETIONS) == ("invalid_request", "prompt")


def test_invalid_utf8_in_a_field_that_is_not_read_goes_through() -> None:
    """vLLM refuses such a body as a whole, so there is nothing to disagree about."""
    body = b'{"model": "a", "messages": "\xff"}'
    assert peek(body, CHAT).model == "a"
    with pytest.raises(UnicodeDecodeError):
        json.loads(body)


def test_the_estimate_rounds_up() -> None:
    """Four bytes are one token, five are two."""
    assert [estimate_input_tokens(length) for length in (0, 1, 4, 5, 4000)] == [0, 1, 1, 2, 1000]


_SCALARS = st.none() | st.booleans() | st.integers(-3, 10**20) | st.text('nmodel\\"{}[]:,u06\n é', max_size=12)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["n", "model", "x"]), inner)
)
_NAMES = st.sampled_from(["model", "n", "stream", "max_tokens", "messages", "x", "mode", "models", 'a"n'])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object with repeated, escaped and nested names, in any white space."""
    space = st.sampled_from(["", " ", "\n\t"])
    pairs = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(_NAMES)
        key = json.dumps(name)
        if draw(st.booleans()):
            key = '"' + "".join(f"\\u{ord(c):04x}" if draw(st.booleans()) else json.dumps(c)[1:-1] for c in name) + '"'
        value = json.dumps(draw(_JSON), ensure_ascii=draw(st.booleans()))
        pairs.append(f"{draw(space)}{key}{draw(space)}:{draw(space)}{value}{draw(space)}")
    return ("{" + ",".join(pairs) + "}").encode()


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, str),
    "stream": lambda value: isinstance(_converted(truth, value), bool),
    "n": lambda value: isinstance(number := _converted(whole, value), int) and 1 <= number < 2**63,
    "max_tokens": lambda value: isinstance(number := _converted(whole, value), int) and 0 <= number < 2**63,
}


def _converted(read: Callable[[object], int], value: object) -> int | None:
    """As vLLM converts a value, None where it does not: `test_lenient.py` holds these against pydantic."""
    if value is None:
        return None
    try:
        return read(value)
    except ValueError:
        return None


@given(bodies())
def test_reading_agrees_with_pythons_json_or_refuses(body: bytes) -> None:
    """An accepted body reads in Python's parser, which vLLM uses, exactly the same; nothing in it is there twice."""
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=list)
    top: dict[str, Any] = json.loads(body)
    names = [name for name, _ in pairs]
    repeated = {name for name in READ if names.count(name) > 1}
    wrong = {name for name, value in pairs if name in _RIGHT and value is not None and not _RIGHT[name](value)}
    if repeated | wrong:
        assert refused(body)[1] in repeated | wrong
        return
    read = peek(body, CHAT)
    assert read.model == (top.get("model") or None)
    assert read.stream is (_converted(truth, top.get("stream")) is True)
    assert read.choices == (_converted(whole, top.get("n")) or 1)
    assert read.max_output == _converted(whole, top.get("max_tokens"))
