"""Levels, when to stop, and where the knee is."""

from __future__ import annotations

import pytest

from aiaas.errors import UsageError
from aiaas.loadtest.sample import RunEnd, Sample, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.summary import Summary, summarize
from aiaas.loadtest.sweep import Sweep, goes_on, knee, parse_sweep, still_grows
from tests.loadtest.samples import failed, sample


def level(load: float, tokens_per_second: float, *, errors: float = 0.0, ttft: float = 0.1) -> Summary:
    """A level's summary over one second."""
    samples: list[Sample] = [sample(0.0, ttft=ttft, e2e=0.9, output_tokens=round(tokens_per_second))]
    samples += [failed(0.0)] * round(errors * 10)
    samples += [sample(0.0, ttft=ttft, e2e=0.9, output_tokens=0)] * (9 - round(errors * 10))
    return summarize(samples, RunEnd(windows=(Window(0.0, 1.0, load),)), parse_slo("ttft=500ms")).total


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        pytest.param("users=1-8", (1, 2, 4, 8), id="doubling"),
        pytest.param("users=1-10", (1, 2, 4, 8, 10), id="doubling to an end of its own"),
        pytest.param("users=5-5", (5,), id="one"),
        pytest.param("users=3,7,9", (3, 7, 9), id="list"),
        pytest.param("rate=0.5,2.5", (0.5, 2.5), id="rates"),
    ],
)
def test_levels_are_read(text: str, levels: tuple[float, ...]) -> None:
    """Ranges double, lists are taken."""
    assert parse_sweep(text) == Sweep(text.partition("=")[0], levels)


@pytest.mark.parametrize(
    "text",
    ["", "users", "users=", "users=8-1", "users=1.5", "users=0-4", "users=2,1", "speed=1-4", "rate=nan", "rate=inf"],
)
def test_a_wrong_sweep_is_refused(text: str) -> None:
    """The message says the allowed forms."""
    with pytest.raises(UsageError, match="write users=1-128"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param([], True, id="nothing yet"),
        pytest.param([100, 100], True, id="two levels tell nothing"),
        pytest.param([100, 190, 350], True, id="grows"),
        pytest.param([100, 190, 192, 350], True, id="one flat level"),
        pytest.param([100, 190, 192, 191], False, id="two flat levels"),
        pytest.param([100, 190, 150, 120], False, id="falls"),
    ],
)
def test_a_sweep_ends_when_more_load_brings_nothing(outputs: list[float], expected: bool) -> None:
    """Two levels in a row without a gain."""
    assert goes_on([level(2**position, output) for position, output in enumerate(outputs)]) is expected


def test_a_sweep_ends_when_half_of_the_requests_fail() -> None:
    """Higher levels would only be worse."""
    assert goes_on([level(1, 100, errors=0.4)])
    assert not goes_on([level(1, 100, errors=0.6)])


@pytest.mark.parametrize(
    ("levels", "at"),
    [
        pytest.param([level(1, 100), level(2, 198), level(4, 390), level(8, 430), level(16, 431)], 4, id="flattens"),
        pytest.param([level(1, 100), level(2, 198), level(4, 390)], 4, id="never flattens"),
        pytest.param([level(1, 100), level(2, 198), level(4, 390, ttft=0.9)], 2, id="SLO missed"),
        pytest.param([level(1, 100), level(2, 198, errors=0.6)], 1, id="errors"),
        pytest.param([level(1, 100, ttft=0.9)], None, id="nothing is good enough"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_the_knee_is_the_last_level_worth_its_load(levels: list[Summary], at: float | None) -> None:
    """Half of the load's growth must come out."""
    found = knee(levels)
    assert (None if found is None else found.level) == at
    assert still_grows(levels) == (at == 4 and len(levels) == 3 and levels[-1].held)
