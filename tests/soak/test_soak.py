"""A short soak of a real `aiaas serve`, and the soak's own arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.soak.__main__ import soak
from tests.soak.finding import Finding, as_text, slope
from tests.soak.storm import memory_of


def test_a_short_storm_leaves_nothing_behind(tmp_path: Path) -> None:
    """400 clients that misbehave, killed backends and reloads: no slot, connection or descriptor is left over."""
    findings = soak(tmp_path, clients=400, events=0, seed=3, say=lambda _text: None)
    assert len(findings) > 8
    assert all(each.holds for each in findings), as_text(findings)


def test_a_short_run_of_streams_is_measured(tmp_path: Path) -> None:
    """Its memory says little; that every stream comes whole is checked, too."""
    [finding] = soak(tmp_path, clients=0, events=30_000, seed=3, say=lambda _text: None)
    assert finding.what == "growth over 30,000 events"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([(0, 5), (1, 5), (2, 5)], 0.0, id="flat"),
        pytest.param([(0, 1), (10, 21), (20, 41)], 2.0, id="a line"),
        pytest.param([(0, 0), (1, 3), (2, 0), (3, 3)], 0.6, id="up and down"),
    ],
)
def test_the_slope_is_that_of_the_best_line(points: list[tuple[float, float]], expected: float) -> None:
    """By least squares."""
    assert slope(points) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("clients", "growth", "holds"),
    [(3_000, 600, True), (3_000, 800, False), (20_000, 250, True), (20_000, 300, False)],
)
def test_storm_may_grow_by_an_allocators_share_once(clients: int, growth: int, holds: bool) -> None:
    """2 MiB in all; in a long storm 256 bytes a client."""
    samples = [(count, 50e6 + growth * count) for count in range(0, clients + 1, 100)]
    [finding] = memory_of(samples)
    assert finding.holds == holds


def test_short_storm_says_nothing_of_memory() -> None:
    """A few samples have no slope that means anything."""
    assert memory_of([(100.0, 1.0), (200.0, 2.0)]) == []


def test_one_sample_has_no_slope() -> None:
    """And so exceeds every bound."""
    assert math.isnan(slope([(1, 1)]))


def test_the_table_says_what_does_not_hold() -> None:
    """At the beginning of its line."""
    shown = as_text([Finding("slots", "0", "0", True), Finding("files", "3", "0", False)])
    assert [line.split()[0] for line in shown.splitlines()] == ["what", "ok", "NOT"]
