"""aiaas.config.request_fields: rules that a field cannot have are problems."""

from __future__ import annotations

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.load import load_text

BACKENDS = {"vllm": {"url": "http://vllm:8000", "models": ["m"]}}


def problems(name: str, rule: object) -> list[tuple[str, str, str]]:
    """Code, path and message of each problem of a config with one rule."""
    text = yaml.safe_dump({"backends": BACKENDS, "request": {"fields": {name: rule}}})
    loaded = load_text(text, file="f", env={})
    return [(found.code, found.path, found.message) for found in (*loaded.problems, *check(loaded, {}))]


@pytest.mark.parametrize(
    ("name", "rule", "says"),
    [
        ("messages", "reject", "the gateway itself reads"),
        ("priorty", "pass", "did you mean priority?"),
        ("zzz", {"max": 1}, "not a field that has a rule"),
        ("seed", {"max": 1}, "cannot be bounded"),
        ("uuid", "strip", "inside other fields"),
        ("store", "reject", "set to false"),
        ("priority", "allow", ""),
        ("priority", {"max": -1}, ""),
        ("a-b", "reject", ""),
    ],
)
def test_rule_that_a_field_cannot_have_is_a_problem(name: str, rule: object, says: str) -> None:
    """At the field's own line, with what to do."""
    [(code, path, message)] = problems(name, rule)
    assert code in ("AIA101", "AIA103")
    assert says in message
    assert path.startswith("request.fields")


@pytest.mark.parametrize(
    ("name", "rule"),
    [("priority", "pass"), ("new_field", "reject"), ("user", "strip"), ("logprobs", {"max": 5}), ("store", "pass")],
)
def test_possible_rule_of_a_field_is_accepted(name: str, rule: object) -> None:
    """A field that the table does not know can be refused."""
    assert problems(name, rule) == []
