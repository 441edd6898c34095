"""The tables and remarks of a killed replica."""

from __future__ import annotations

import pytest

from aiaas.loadtest.killed import Fates, Killed
from aiaas.loadtest.killed_report import kill_remarks, killed_as_json, killed_tables
from aiaas.loadtest.sample import Kill
from aiaas.loadtest.stats import spread

KILL = Kill("kill -9 1", at=10.0, ended=10.25, code=0)
FIGURES = Killed(
    KILL,
    in_flight=Fates(requests=5, whole=1, spoiled=1, error_events=1, cut=1, refused=1),
    begun=4,
    later=Fates(requests=7, whole=6, refused=1),
    gaps=spread([0.5, 1.5]),
    refusals={"http_503": 2},
    spoiled_by={"usage": 1},
)


def test_every_fate_is_a_row_for_both_groups() -> None:
    """And each figure is in its column."""
    fates, details = killed_tables(FIGURES)
    assert fates.headers == ("", "in flight", "later")
    assert [row[1:] for row in fates.rows] == [("5", "7"), ("1", "6"), ("1", "0"), ("1", "0"), ("1", "0"), ("1", "1")]
    assert dict(details.rows) == {
        "command": "kill -9 1",
        "exit code": "0",
        "began, after the run's start": "10.00 s",
        "took": "250 ms",
        "in flight and past the first event": "4",
        "their longest gap, p50, p95, max": "500 ms, 1.50 s, 1.50 s",
        "refused, http_503": "2",
        "in flight with a wrong usage": "1",
    }


def test_json_says_how_many_were_lost() -> None:
    """Beside the figures."""
    found = killed_as_json(FIGURES)
    assert (found["lost"], found["held"], found["kill"]["code"], found["in_flight"]["cut"]) == (4, False, 0, 1)


@pytest.mark.parametrize(
    ("code", "fates", "words"),
    [
        (0, Fates(requests=2, whole=2), []),
        (0, Fates(requests=5, whole=1), ["4 of the 5 requests in flight were lost"]),
        (7, Fates(requests=2, whole=2), ["failed (7), so perhaps nothing was killed"]),
        (None, Fates(requests=2, whole=2), ["was still running when the run ended"]),
        (0, Fates(), ["no request was in flight"]),
    ],
)
def test_each_reason_against_the_run_is_a_remark(code: int | None, fates: Fates, words: list[str]) -> None:
    """A run in which all is well has no remark."""
    remarks = kill_remarks(Killed(Kill("x", 1.0, None, code), fates, 0, Fates(), None, {}, {}))
    assert len(remarks) == len(words)
    assert all(word in remark for word, remark in zip(words, remarks, strict=True))
