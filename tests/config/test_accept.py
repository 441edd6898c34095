"""`accept`: warnings that may stay. The messages of wrong entries are in cases/accept.case."""

from __future__ import annotations

import re

import pytest

from aiaas.config import codes
from aiaas.config.accept import NEVER_WARNINGS, accepted_in_vain, without_accepted
from aiaas.config.check import check
from aiaas.config.code_texts import CODES
from aiaas.config.load import Loaded, load_text
from aiaas.config.problem import Problem
from tests.repository_rules import ROOT

TEXT = "backends:\n  v: {url: 'http://v:8000', models: [m]}\nauth: {enabled: false}\n"


def load(accept: str, text: str = TEXT) -> tuple[Loaded, tuple[Problem, ...]]:
    """A config that accepts something, and its problems."""
    loaded = load_text(f"{text}accept: {accept}\n", file="f", env={})
    return loaded, loaded.problems + check(loaded, {})


def test_accepted_warnings_are_split_off() -> None:
    """Only the named code."""
    loaded, found = load("{AIA209: a lab}")
    assert [problem.code for problem in found] == ["AIA209"]
    assert without_accepted(loaded, found) == ((), found)
    loaded, found = load("{AIA219: one}")
    assert without_accepted(loaded, found) == (found, ())


def test_errors_of_an_accepted_code_still_count() -> None:
    """Some codes are errors in one place and warnings in another: AIA206 is both here."""
    text = TEXT.replace("models:", "endpoints: [/v1/nonsense], models:")
    loaded, found = load("{AIA206: later, AIA209: a lab}", text)
    kept, accepted = without_accepted(loaded, found)
    assert [(problem.code, problem.severity) for problem in kept] == [("AIA206", "error")]
    assert {problem.severity for problem in accepted} == {"warning"}


def test_an_accepted_warning_that_is_gone_is_reported() -> None:
    """The entry would hide the next one."""
    loaded, found = load("{AIA209: a lab, AIA222: slow clients}")
    [problem] = accepted_in_vain(loaded, without_accepted(loaded, found)[1], deployed=True)
    assert str(problem) == "f:4:33: warning AIA226 accept.AIA222: this warning does not occur; remove it"


def test_warnings_of_a_deployment_are_not_judged_without_one() -> None:
    """`aiaas render --target compose` may report what `aiaas validate` without a `kubernetes` section does not ask."""
    loaded, found = load("{AIA504: short answers, AIA222: slow clients}")
    accepted = without_accepted(loaded, found)[1]
    assert [each.path for each in accepted_in_vain(loaded, accepted, deployed=False)] == ["accept.AIA222"]
    assert len(accepted_in_vain(loaded, accepted, deployed=True)) == 2


@pytest.mark.parametrize("code", ["AIA007", "AIA401", "AIA407", "AIA516", "AIA603", "AIA206"])
def test_warnings_from_elsewhere_may_be_accepted_ahead(code: str) -> None:
    """Other machines have other files, and backends answer differently from day to day."""
    loaded, found = load(f"{{{code}: a reason, AIA209: a lab}}")
    assert accepted_in_vain(loaded, without_accepted(loaded, found)[1], deployed=True) == ()


def test_codes_that_are_never_warnings_are_listed() -> None:
    """No source file makes such a problem a warning, and every other one is a warning somewhere."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "aiaas").rglob("*.py")))
    named = {match[1] for match in re.finditer(r'codes\.([A-Z_]+),\s*"warning"', text)}
    # Their severity is a variable, or an expression.
    named |= {"HOP_TIMEOUT", "POLICY", "TLS_FILES", "SCHEDULING"}
    warnings = {getattr(codes, name) for name in named} - {codes.ACCEPT}
    assert set(CODES) - warnings == NEVER_WARNINGS
