"""One field changes, every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiaas.errors import ClientError
from aiaas.openai.splice import LARGEST_DECODED, ask_for_usage, set_field, set_fields


@pytest.mark.parametrize(
    ("body", "result"),
    [
        pytest.param(b'{"model": "a", "n": 1}', b'{"model": "new", "n": 1}', id="first"),
        pytest.param(
            b' {\n "n": 1.50,\t"model"\n:\r"a" } ', b' {\n "n": 1.50,\t"model"\n:\r"new" } ', id="white space"
        ),
        pytest.param(b'{"x": {"model": "b"}, "model": {}}', b'{"x": {"model": "b"}, "model": "new"}', id="also nested"),
        pytest.param(b'{"x": {"model": "b"}}', b'{"model":"new","x": {"model": "b"}}', id="only nested"),
        pytest.param(b'{"y": "model", "model": null}', b'{"y": "model", "model": "new"}', id="also a value"),
        pytest.param(b'{"y": "\\"model", "model": 1}', b'{"y": "\\"model", "model": "new"}', id="also in a text"),
        pytest.param(b'{"mod\\u0065l": [1, 2]}', b'{"mod\\u0065l": "new"}', id="escaped"),
        pytest.param(b'{"\\u006dodel": 1, "z": {"model": 2}}', b'{"\\u006dodel": "new", "z": {"model": 2}}', id="both"),
        pytest.param(b'{"model":1,"model":2}', b'{"model":"new","model":"new"}', id="repeated"),
        pytest.param(b"{}", b'{"model":"new"}', id="empty"),
        pytest.param(b" { } ", b' {"model":"new" } ', id="empty with space"),
        pytest.param(b'{"a":1}', b'{"model":"new","a":1}', id="absent"),
    ],
)
def test_the_field_is_set_and_nothing_else(body: bytes, result: bytes) -> None:
    """Whatever surrounds the value, only the value is replaced; an absent field is inserted at the front."""
    assert set_field(body, "model", b'"new"') == result


@pytest.mark.parametrize(
    ("begin", "end", "result"),
    [
        (b'{"model": "a", "x": "', b'"}', (b'{"model": "new", "x": "', b'"}')),
        (b'{"x": "', b'", "mod\\u0065l" : {"n": 1}}', (b'{"x": "', b'", "mod\\u0065l" : "new"}')),
        (b' {"x": "', b'", "y": {"model": 1}}', (b' {"model":"new","x": "', b'", "y": {"model": 1}}')),
    ],
    ids=["first", "last and escaped", "only nested"],
)
def test_a_large_body_changes_in_the_same_way(begin: bytes, end: bytes, result: tuple[bytes, bytes]) -> None:
    """By the walk, whatever is in its texts."""
    text = b'\\"model\\": \\\\' * (LARGEST_DECODED // 12)
    assert set_field(begin + text + end, "model", b'"new"') == result[0] + text + result[1]


def test_several_fields_are_set_at_once() -> None:
    """Present ones are replaced, absent ones inserted."""
    body = set_fields(b'{"model": "a"}', {"model": b'"b"', "stream_options": b'{"include_usage":true}'})
    assert body == b'{"stream_options":{"include_usage":true},"model": "b"}'


@pytest.mark.parametrize(
    ("written", "result"),
    [
        (b"null", b'{"include_usage":true}'),
        (b"{}", b'{"include_usage":true}'),
        (b"{ }", b'{"include_usage":true }'),
        (b'{"include_usage": false}', b'{"include_usage": true}'),
        (b'{"include_usage":null , "x" :1.50}', b'{"include_usage":true , "x" :1.50}'),
        (b'{"x":{"include_usage":false}}', b'{"include_usage":true,"x":{"include_usage":false}}'),
        (b'{"\\u0069nclude_usage":false}', b'{"\\u0069nclude_usage":true}'),
        (b'{"continuous_usage_stats": true}', b'{"include_usage":true,"continuous_usage_stats": false}'),
        (b'{"continuous_usage_stats":"yes","x":1}', b'{"include_usage":true,"continuous_usage_stats":false,"x":1}'),
        (b'{"continuous_usage_stats":1,"continuous_usage_stat\\u0073":1}',
         b'{"include_usage":true,"continuous_usage_stats":false,"continuous_usage_stat\\u0073":false}'),
        (b'{"continuous_usage_stats":null}', b'{"include_usage":true,"continuous_usage_stats":null}'),
        (b'{"x":{"continuous_usage_stats":true}}', b'{"include_usage":true,"x":{"continuous_usage_stats":true}}'),
    ],
    ids=[
        "null", "empty", "a space", "declined", "null inside", "only nested", "escaped", "on every event",
        "on every event, in words", "repeated", "on no event", "on every event, nested",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, LARGEST_DECODED], ids=["small", "large"])
def test_usage_is_asked_for_beside_other_options(written: bytes, result: bytes, size: int) -> None:
    """All else stays, but usage on every event: alone it does nothing, beside `include_usage` it would."""
    body = b'{"x":{"stream_options":1,"y":"%b"}, "stream_options" : %b ,"z":2}'
    filler = b"y" * size
    asking = ask_for_usage(body % (filler, written), has_options=written != b"null")
    assert asking == body % (filler, result)


def test_usage_is_asked_for_without_options() -> None:
    """The field is inserted at the front."""
    assert ask_for_usage(b'{"a":1}', has_options=False) == b'{"stream_options":{"include_usage":true},"a":1}'


def test_a_body_of_too_many_fields_is_refused() -> None:
    """The slow path is bounded in the number of fields."""
    body = b'{"z": {"model": 1}, "model": "a",' + b",".join(b'"x%d": 1' % number for number in range(2000)) + b"}"
    with pytest.raises(ClientError):
        set_field(body, "model", b'"b"')


_NAMES = st.sampled_from(["model", "n", "x", "mode", '"model"', "\\model", "mödel", ""])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('model":,{}[]\\ é', max_size=12) | st.just("model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
)


@st.composite
def cut_bodies(draw: st.DrawFn) -> list[tuple[str, str, str, str]]:
    """Fields of an object as (name, all before the value, the value, all behind it)."""
    space = st.sampled_from(["", " ", "\n\r\t"])
    cut = []
    for name in draw(st.lists(_NAMES, unique=True, max_size=5)):
        key = json.dumps(name, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            key = '"' + "".join(f"\\u{ord(c):04X}" for c in name) + '"'
        value = json.dumps(draw(_VALUES), ensure_ascii=draw(st.booleans()))
        cut.append((name, f"{draw(space)}{key}{draw(space)}:{draw(space)}", value, draw(space)))
    return cut


@given(cut_bodies(), st.sampled_from(["model", "n"]), _VALUES)
@example([("x", '"x":', '{"model":1}', ""), ("model", '"\\u006dodel":', "1", "")], "model", None)
def test_any_object_changes_in_one_place(cut: list[tuple[str, str, str, str]], name: str, value: Any) -> None:
    """The result equals the fields joined again with the one value changed, byte for byte."""
    body = "{" + ",".join(before + old + behind for _, before, old, behind in cut) + "}"
    new = json.dumps(value)
    changed = [before + (new if key == name else old) + behind for key, before, old, behind in cut]
    if all(key != name for key, *_ in cut):
        changed.insert(0, f'"{name}":{new}')
    result = set_field(body.encode(), name, new.encode())
    assert result == ("{" + ",".join(changed) + "}").encode()
    assert json.loads(result) == {**json.loads(body), name: value}
