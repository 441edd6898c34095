"""The time that the gateway adds, out of pairs."""

from __future__ import annotations

import random
from collections.abc import Iterator

from aiaas.loadtest.compare import FEWEST, overhead
from aiaas.loadtest.sample import Sample
from tests.loadtest.samples import failed, sample


def pairs(number: int, added: float, *, drift: float = 0.0) -> Iterator[Sample]:
    """`count` pairs in which the gateway adds `added` seconds; both ways get slower by `drift` with each pair."""
    noise = random.Random(1)
    for pair in range(number):
        base = 0.2 + drift * pair
        first = noise.random() < 0.5
        for place, via in enumerate(("gateway", "direct") if first else ("direct", "gateway")):
            ttft = base + noise.gauss(0, 0.001) + (added if via == "gateway" else 0)
            gaps = (20_000, 20_000 + (100 if via == "gateway" else 0))
            yield sample(0.0, number=2 * pair + place, via=via, ttft=ttft, e2e=ttft + 0.5, gaps=gaps)


def test_the_overhead_is_the_median_difference_with_its_interval() -> None:
    """2 ms added are found, within an interval that holds them and not 0."""
    found = overhead(pairs(100, 0.002), random.Random(0).random)
    assert found is not None
    assert found.ttft is not None
    assert found.pairs == 100
    assert found.ttft.low < 0.002 < found.ttft.high
    assert found.ttft.low > 0
    assert found.ttft.high - found.ttft.low < 0.001
    assert abs(found.e2e.estimate - 0.002) < 0.0005
    assert found.direct_ttft is not None
    assert abs(found.direct_ttft - 0.2) < 0.001
    assert found.event is not None
    assert abs(found.event.estimate - 0.00005) < 1e-9


def test_a_slow_drift_of_both_does_not_matter() -> None:
    """Pairs differ by the gateway only, though the last is ten times slower than the first."""
    found = overhead(pairs(100, 0.002, drift=0.02), random.Random(0).random)
    assert found is not None
    assert found.ttft is not None
    assert found.ttft.low < 0.002 < found.ttft.high < 0.003


def test_where_nothing_is_added_the_interval_holds_0() -> None:
    """The interval shows that no overhead was found."""
    found = overhead(pairs(100, 0.0), random.Random(0).random)
    assert found is not None
    assert found.e2e.low <= 0 <= found.e2e.high


def test_only_whole_measured_pairs_count() -> None:
    """A failure, a warm-up, or a single way has no counterpart."""
    spoiled = [
        failed(0.0, number=1000),
        sample(0.0, number=1001, via="direct"),
        sample(0.0, number=1002, warmup=True),
        sample(0.0, number=1003, via="direct", warmup=True),
        sample(0.0, number=1004),
        sample(0.0, number=1005),
    ]
    found = overhead([*spoiled, *pairs(FEWEST, 0.001)], random.Random(0).random)
    assert found is not None
    assert found.pairs == FEWEST


def test_too_few_pairs_say_nothing() -> None:
    """Rather than an interval that means little."""
    assert overhead(pairs(FEWEST - 1, 0.001), random.Random(0).random) is None


def test_without_streams_the_whole_answers_are_compared() -> None:
    """Without streams there is no TTFT and no gap."""
    plain = [
        sample(0.0, number=n, via=("gateway", "direct")[n % 2], ttft=None, e2e=1.0 - n % 2 / 10) for n in range(80)
    ]
    found = overhead(plain, random.Random(0).random)
    assert found is not None
    assert (found.ttft, found.event, round(found.e2e.estimate, 6)) == (None, None, 0.1)
