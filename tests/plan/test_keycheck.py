"""The key file against the Plan."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from aiaas.config.load import load_text
from aiaas.keys.model import KeyRecord
from aiaas.plan.compile import compile_plan
from aiaas.plan.keycheck import check_keys

CONFIG = """backends: {vllm: {url: 'http://vllm:8000', models: [big-model, small], forward_headers: [x-forwarded]}}
request: {fields: {own_field: reject}, fields_by_class: {batch: {other_field: reject}}}
"""


def record(**changes: object) -> KeyRecord:
    """A sound key, with changes."""
    fields = {"id": "abcdefgh", "name": "alice", "hash": "x", "created": datetime(2026, 1, 1, tzinfo=UTC)}
    return KeyRecord(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"models": ("big-model", "small")}, []),
        ({"models": ("big-mode",)}, ["error AIA404 keys.alice.models: may use big-mode, which no backend serves"]),
        ({"allow_fields": ("priority", "prompt_logprobs", "uuid", "own_field", "other_field")}, []),
        ({"allow_fields": ("priorty",)}, ["error AIA404 keys.alice.allow_fields: priorty: is not a field that has a"]),
        ({"allow_fields": ("stream",)}, ["error AIA404 keys.alice.allow_fields: stream: the gateway itself reads"]),
        ({"users_header": "X-User"}, []),
        ({"users_header": "X-Forwarded"}, ["error AIA103 keys.alice.users_header: X-Forwarded stands in forward_head"]),
        ({"weak": True}, ["warning AIA403 keys.alice: was imported with --weak"]),
        ({"weak": True, "models": ("gone",), "disabled": True}, []),
    ],
    ids=[
        "a plain key",
        "a key with models",
        "a model that is gone",
        "allowed fields",
        "a misspelt field",
        "a field of the gateway",
        "a header with users",
        "a header that goes upstream",
        "a weak key",
        "a revoked key says nothing",
    ],
)
def test_a_key_is_checked_against_the_plan(changes: dict[str, object], expected: list[str]) -> None:
    """A scope that names no model is an error with a suggestion; a guessable key is a warning."""
    config = load_text(CONFIG, file="aiaas.yaml", env={}).config
    assert config is not None
    problems = check_keys(compile_plan(config, source=None, overrides=(), env={}), [record(**changes)])
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert words in str(problem)
    for wrong, right in (("big-mode,", "big-model"), ("priorty", "priority")):
        if wrong in str(problems):
            assert f"did you mean {right}?" in str(problems[0])
