"""tests/bench/script.py: the figures that follow from a script."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.script import KEYS, Script, truth

CLOSED = Script("closed", 20, None, 60, 50, 0.2, 0.02)


def test_an_even_script_has_one_value_for_each_duration() -> None:
    """TTFT, then 49 gaps; three waves of 20 users."""
    figures = truth(CLOSED)
    assert sorted(figures) == sorted(KEYS)
    assert (figures["ttft_p50"], figures["ttft_p99"]) == pytest.approx((0.2, 0.2))
    assert (figures["itl_p99"], figures["tpot_p50"]) == pytest.approx((0.02, 0.02))
    assert (figures["e2e_p50"], figures["e2e_p99"]) == pytest.approx((1.18, 1.18))
    assert figures["requests_per_second"] == pytest.approx(60 / (3 * 1.18))
    assert figures["tokens_per_second"] == pytest.approx(60 * 50 / (3 * 1.18))


def test_an_open_loop_lasts_until_its_last_answer() -> None:
    """The 60th request is due after 59 intervals, and takes its time."""
    figures = truth(replace(CLOSED, users=None, rate=20.0))
    assert figures["requests_per_second"] == pytest.approx(60 / (59 / 20 + 1.18))


def test_an_uneven_script_has_spread_gaps_and_an_even_mean() -> None:
    """Evenly between half and one and a half: the p99 of the gaps is at 99 % of that range."""
    figures = truth(replace(CLOSED, jitter=0.5))
    assert figures["itl_mean"] == pytest.approx(0.02, rel=0.01)
    assert figures["itl_p99"] == pytest.approx(0.0298, rel=0.01)
    assert figures["tpot_p99"] < 0.023
