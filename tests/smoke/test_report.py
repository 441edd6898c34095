"""Results as lines, JSON and JUnit's XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from aiaas.smoke.report import held, lines, results_as_json, results_line, to_junit, took_of
from aiaas.smoke.result import Result

GOOD = Result("health", "passed", "200", "200", "", 0.0012)
BAD = Result("stream", "failed", "[DONE]", 'no <end> & "more"\x00\ud800', "a proxy", 1.26)
NOT_MADE = Result("direct", "skipped", "", "needs --direct")
ALL = (GOOD, BAD, NOT_MADE)


def test_a_failed_check_says_more() -> None:
    """The expected result, and the usual cause."""
    assert lines(GOOD) == ["passed   health            1.2 ms  200"]
    assert lines(BAD)[1:] == ["         expected  [DONE]", "         hint      a proxy"]
    assert lines(NOT_MADE) == ["skipped  direct                    needs --direct"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.0004, "0.4 ms"), (0.25, "250 ms"), (12.34, "12.3 s")], ids=str
)
def test_times_are_short(seconds: float | None, text: str) -> None:
    """And absent where no request was sent."""
    assert took_of(Result("a", "passed", "", "", "", seconds)) == text


@pytest.mark.parametrize(
    ("results", "holds"),
    [((GOOD,), True), ((GOOD, NOT_MADE), True), (ALL, False), ((NOT_MADE,), False), ((), False)],
    ids=["passed", "one skipped", "one failed", "all skipped", "none"],
)
def test_it_holds_where_something_passed_and_nothing_failed(results: tuple[Result, ...], holds: bool) -> None:
    """A run that skips every check has not succeeded."""
    assert held(results) is holds


def test_json_counts_and_lists() -> None:
    """An interrupted run never passes."""
    found = results_as_json("http://h:1", ALL, interrupted=False)
    assert (found["held"], found["passed"], found["failed"], found["skipped"]) == (False, 1, 1, 1)
    assert found["checks"][0] == {
        "name": "health",
        "outcome": "passed",
        "expected": "200",
        "seen": "200",
        "hint": "",
        "seconds": 0.0012,
    }
    assert results_as_json("http://h:1", (GOOD,), interrupted=True)["held"] is False
    assert results_line(ALL) == "1 passed, 1 failed, 1 skipped"


def test_the_xml_is_well_formed_whatever_a_server_sent() -> None:
    """Escaped, and without what XML cannot hold at all."""
    suite = ElementTree.fromstring(to_junit("http://h:1", ALL, "2026-11-23T10:00:00"))[0]
    assert dict(suite.attrib) == {
        "name": "aiaas smoke http://h:1",
        "timestamp": "2026-11-23T10:00:00",
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
        "time": "1.261",
    }
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == 'no <end> & "more"??'
    assert "hint: a proxy" in (failure.text or "")
    skipped = suite.find("testcase/skipped")
    assert skipped is not None
    assert skipped.get("message") == "needs --direct"
    assert [case.get("time") for case in suite.iter("testcase")] == ["0.001", "1.260", "0.000"]
