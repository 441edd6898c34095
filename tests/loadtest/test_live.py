"""The last seconds in numbers."""

from __future__ import annotations

from aiaas.loadtest.live import HISTORY, RECENT_SPAN, Recent, sparkline
from tests.loadtest.samples import failed, sample


def test_a_glance_is_of_the_last_seconds() -> None:
    """Older samples are in no rate and no percentile; counts are since the start."""
    recent = Recent()
    for second in range(30):
        recent.add(sample(float(second), ttft=0.1 if second < 15 else 0.3, e2e=0.5))
    glance = recent.glance(30.0)
    assert (glance.answered, glance.answers_per_second) == (30, 10 / RECENT_SPAN)
    assert (round(glance.ttft_p50 or 0, 6), round(glance.e2e_p99 or 0, 6)) == (0.3, 0.5)
    assert glance.tokens_per_second == 11.0


def test_errors_429s_and_those_who_left_are_told_apart() -> None:
    """Only answers make rates."""
    recent = Recent()
    for one in (failed(), failed(error="http_429", status=429), sample(aborted=True)):
        recent.add(one)
    glance = recent.glance(1.0)
    assert (glance.errors, glance.rate_limited, glance.answered, glance.e2e_p50) == (1, 1, 0, None)


def test_sparkline_has_one_bar_per_whole_second_and_an_end() -> None:
    """The current second has not ended yet; after a minute the oldest go."""
    recent = Recent()
    for second in (0, 0, 1, 1, 1, 1, 3):
        recent.add(sample(float(second), e2e=0.5))
    assert recent.glance(3.9).sparkline == "▅█▁"
    assert len(recent.glance(500.0).sparkline) == HISTORY


def test_a_sparkline_reaches_from_nothing_to_the_largest() -> None:
    """A run without answers is flat."""
    assert (sparkline([0, 1, 2]), sparkline([0, 0]), sparkline([])) == ("▁▅█", "▁▁", "")
