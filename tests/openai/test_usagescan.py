"""aiaas.openai.usagescan: the answer's own usage, wherever it stands and however the body is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas.openai.usage import TokenUsage, usage_of_answer
from aiaas.openai.usagescan import BilledScan, UsageScan

USAGE = {"prompt_tokens": 911, "completion_tokens": 200, "total_tokens": 1111}
FOUND = TokenUsage(911, 200)
CACHED = TokenUsage(911, 200, 1)
# As vLLM writes them behind `usage`.
LOGPROBS = [{str(token): {"logprob": -1.5, "rank": 1, "decoded_token": '"u}{\\'}} for token in range(20)] * 30


def scan(body: bytes, size: int) -> TokenUsage | None:
    """The usage of a body that comes in parts of `size` bytes."""
    found = UsageScan()
    for start in range(0, len(body), size):
        found.feed(body[start : start + size])
    return found.usage


def compact(body: Any) -> bytes:
    """As vLLM writes it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


TEXT = '"usage": {"prompt_tokens": 1} and \\"usage\\":{} \\\\'
BODIES: dict[str, tuple[bytes, TokenUsage | None]] = {
    "at the end": (compact({"choices": [{"message": {"content": TEXT}}], "usage": USAGE}), FOUND),
    "before something long": (compact({"choices": [], "usage": USAGE, "prompt_logprobs": LOGPROBS}), FOUND),
    "behind something long": (compact({"prompt_logprobs": LOGPROBS, "usage": USAGE}), FOUND),
    "first": (compact({"usage": USAGE, "choices": []}), FOUND),
    "with spaces": (json.dumps({"choices": [], "usage": USAGE}, indent=4).encode(), FOUND),
    "space around": (b' \r\n {"usage" \n: \t' + compact(USAGE) + b" } ", FOUND),
    "responses": (compact({"output": [], "usage": {"input_tokens": 911, "output_tokens": 200}, "user": None}), FOUND),
    "a tool's property": (
        compact({"tools": [{"parameters": {"properties": {"usage": {"input_tokens": 0}}}}], "usage": USAGE}), FOUND
    ),
    "a tool's property alone": (compact({"tools": [{"properties": {"usage": USAGE}}]}), None),
    "a value": (compact({"id": "usage", "tags": ["usage"], "usage": USAGE}), FOUND),
    "inside a text": (compact({"text": 'x"usage', "usage": USAGE}), FOUND),
    "a key that ends so": (compact({'my "usage': USAGE, "n": 1}), None),
    "text alone": (compact({"choices": [{"message": {"content": json.dumps({"usage": USAGE})}}]}), None),
    "backslashes": (compact({"a": "\\" * 7 + '"' + "\\" * 200, "usage": USAGE}), FOUND),
    "null": (compact({"usage": None}), None),
    "a list": (compact({"usage": [1]}), None),
    "broken off inside": (compact({"usage": USAGE})[:-4], None),
    "broken off behind": (compact({"usage": USAGE, "choices": [1, 2]})[:-4], FOUND),
    "details": (compact({"usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}, "x": 1}), CACHED),
    "an array": (compact([{"usage": USAGE}]), None),
    "compressed": (b"\x1f\x8b" + compact({"usage": USAGE}), None),
    "empty": (b"", None),
    "endless": (b'{"usage":{"a":"' + b"x" * 100_000, None),
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize(("body", "usage"), BODIES.values(), ids=BODIES)
def test_usage_is_found_wherever_it_stands(body: bytes, usage: TokenUsage | None, size: int) -> None:
    """However the body is cut into parts."""
    assert scan(body, size) == usage


TEXTS = st.text('u"\\{}[]:,é usage', max_size=12) | st.sampled_from(['"usage"', '\\"usage":', "usage", '{"usage":{}}'])
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=12
)


@settings(deadline=None, max_examples=300)
@given(before=st.dictionaries(TEXTS, VALUES), after=st.dictionaries(TEXTS, VALUES), size=st.integers(1, 50))
def test_usage_among_anything_is_the_answers_own(before: dict[str, Any], after: dict[str, Any], size: int) -> None:
    """The same as a parser finds."""
    body = {**before, "usage": USAGE, **{name: value for name, value in after.items() if name != "usage"}}
    encoded = compact(body)
    assert scan(encoded, size) == usage_of_answer(encoded) == FOUND


@pytest.mark.parametrize(
    "count", [-1, 2**63, 10**9 + 1, 1.0, 1e3, True, "7"],
    ids=["negative", "2^63", "too large", "whole fraction", "exponent", "true", "text"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_counts_that_cannot_be_true_are_refused(field: str, count: object) -> None:
    """By the scan and by the decoder of short answers."""
    body = compact({"usage": {**USAGE, field: count}})
    assert scan(body, 1000) is usage_of_answer(body) is None


EMBEDDED = {"id": "x", "embeddings": {"float": [[0.5, 1.5]]}, "texts": ['"billed_units": {"input_tokens": 1}']}


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        pytest.param({"input_tokens": 7, "image_tokens": 0}, TokenUsage(7, 0), id="texts"),
        pytest.param({"input_tokens": 0, "image_tokens": 9}, TokenUsage(9, 0), id="images"),
        pytest.param({"input_tokens": 7}, TokenUsage(7, 0), id="one of them"),
        pytest.param({}, None, id="neither"),
        pytest.param(None, None, id="null"),
        pytest.param({"input_tokens": -1}, None, id="negative"),
        pytest.param({"input_tokens": 1.5}, None, id="a fraction"),
        pytest.param({"input_tokens": "7"}, None, id="a text"),
        pytest.param([7], None, id="a list"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_cohere_answer_has_its_usage_in_billed_units(units: Any, expected: TokenUsage | None, size: int) -> None:
    """Below `meta` only, however the body is cut; a text of the request that the answer repeats does not count."""
    body = compact(EMBEDDED | {"meta": {"api_version": {"version": "2"}, "billed_units": units}})
    found = BilledScan()
    for start in range(0, len(body), size):
        found.feed(body[start : start + size])
    assert found.usage == expected
    at_the_top = BilledScan()
    at_the_top.feed(compact(EMBEDDED | {"billed_units": {"input_tokens": 7}}))
    assert at_the_top.usage is None
