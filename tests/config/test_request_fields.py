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


def test_rules_of_a_class_are_checked_as_those_for_all() -> None:
    """At their own line; an unknown class is an error, too."""
    for written, at in (
        ({"batch": {"priorty": "pass"}}, "request.fields_by_class.batch.priorty"),
        ({"batsh": {"priority": "pass"}}, "request.fields_by_class.batsh"),
    ):
        text = yaml.safe_dump({"backends": BACKENDS, "request": {"fields_by_class": written}})
        loaded = load_text(text, file="f", env={})
        [found] = [*loaded.problems, *check(loaded, {})]
        assert found.path == at


@pytest.mark.parametrize(
    ("name", "rule"),
    [("priority", "pass"), ("new_field", "reject"), ("user", "strip"), ("logprobs", {"max": 5}), ("store", "pass")],
)
def test_possible_rule_of_a_field_is_accepted(name: str, rule: object) -> None:
    """A field that the table does not know can be refused."""
    assert problems(name, rule) == []


@pytest.mark.parametrize(
    ("lines", "env", "says"),
    [
        ({"isolate_cache": "key"}, {}, "needs isolate_cache_secret_env"),
        ({"isolate_cache": "key", "isolate_cache_secret_env": "S"}, {}, "S is not set"),
        ({"isolate_cache": "key", "isolate_cache_secret_env": "S"}, {"S": "x" * 31}, "S is too short"),
        ({"isolate_cache": "key", "isolate_cache_secret_env": "S"}, {"S": "x" * 32}, None),
        ({"isolate_cache": "key", "enabled": False}, {}, None),
        ({"isolate_cache": False, "isolate_cache_secret_env": "S"}, {}, None),
    ],
)
def test_cache_is_isolated_with_a_secret_only(lines: dict[str, object], env: dict[str, str], says: str | None) -> None:
    """A salt that anybody can compute isolates nothing."""
    backends = {"vllm": BACKENDS["vllm"] | lines, "other": BACKENDS["vllm"]}
    loaded = load_text(yaml.safe_dump({"backends": backends}), file="f", env=env)
    found = [problem.message for problem in (*loaded.problems, *check(loaded, env)) if problem.severity == "error"]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]
