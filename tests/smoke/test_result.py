"""Verdicts become results that can be shown, and names choose checks."""

from __future__ import annotations

import pytest

from aiaas.errors import UsageError
from aiaas.smoke.result import Verdict, choose_checks, judged, result_of, skipped

NAMES = ("health", "stream", "models")


def test_a_hint_stands_only_where_it_is_of_use() -> None:
    """Beside a failed check."""
    assert judged(True, "200", "200", "the cause").hint == ""
    assert judged(False, "200", "404", "the cause").hint == "the cause"


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        pytest.param(judged(True, "200", "200", ""), "passed", id="held"),
        pytest.param(judged(False, "200", "404", ""), "failed", id="not held"),
        pytest.param(skipped("no key"), "skipped", id="not made"),
    ],
)
def test_a_skipped_check_is_not_a_passed_one(verdict: Verdict, outcome: str) -> None:
    """There are three outcomes."""
    assert result_of("health", verdict, None).outcome == outcome


def test_server_text_shows_no_key_and_moves_no_cursor() -> None:
    """The server may echo our key, or send a terminal's control sequences."""
    result = result_of("no-key", judged(False, "401", "you sent sk-1\x1b[2J\n", "sk-1?"), 0.5, ("sk-1",))
    assert result.seen == "you sent <the key> [2J "
    assert result.hint == "<the key>?"


@pytest.mark.parametrize(
    ("only", "without", "chosen"),
    [
        pytest.param([], [], NAMES, id="all"),
        pytest.param(["models", "health"], [], ("health", "models"), id="some, in their own order"),
        pytest.param([], ["stream"], ("health", "models"), id="all but one"),
        pytest.param(["models", "health"], ["health"], ("models",), id="both"),
    ],
)
def test_names_choose_checks(only: list[str], without: list[str], chosen: tuple[str, ...]) -> None:
    """--only and --skip."""
    assert choose_checks(NAMES, only, without) == chosen


@pytest.mark.parametrize(
    ("only", "without", "message"),
    [
        (["x"], [], "--only: unknown check 'x'"),
        ([], ["x"], "--skip: unknown check 'x'"),
        ([], list(NAMES), "leave nothing to check"),
    ],
    ids=["only", "skip", "none left"],
)
def test_a_name_that_there_is_not_is_wrong_usage(only: list[str], without: list[str], message: str) -> None:
    """The error comes before anything is sent."""
    with pytest.raises(UsageError, match=message):
        choose_checks(NAMES, only, without)
