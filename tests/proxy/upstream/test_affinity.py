"""aiaas.proxy.upstream.affinity: the order in which a session prefers its endpoints."""

from __future__ import annotations

from collections import Counter

import pytest

from aiaas.proxy.upstream.affinity import number_of, weights

URLS = [f"http://vllm-{number}:8000" for number in range(5)]


def best(session: bytes, urls: list[str]) -> str:
    """The home of a session."""
    order = weights(number_of(session), [number_of(url.encode()) for url in urls])
    return urls[order.index(max(order))]


SESSIONS = [b"session %d" % number for number in range(5000)]


def test_even_distribution() -> None:
    """Sessions spread over the endpoints: 1,000 each, within five standard deviations (28)."""
    count = Counter(best(session, URLS) for session in SESSIONS)
    assert len(count) == 5
    assert all(abs(number - 1000) < 5 * 28.3 for number in count.values())


def test_second_choices_spread_evenly() -> None:
    """Every ordered pair of first and second endpoint is equally frequent: 250 each, within five deviations (15.4).

    The second endpoint gets what the first cannot take, so one pair must not be more frequent than others.
    """
    pairs = Counter(
        (first, best(session, [*URLS[:first], *URLS[first + 1 :]]))
        for session in SESSIONS
        for first in [URLS.index(best(session, URLS))]
    )
    assert len(pairs) == 20
    assert all(abs(number - 250) < 5 * 15.4 for number in pairs.values())


@pytest.mark.parametrize("count", [2, 3, 16, 100])
def test_distribution_passes_a_chi_square_test(count: int) -> None:
    """For small and large fleets, whose URLs differ by a digit: within four standard deviations of chance."""
    urls = [number_of(b"http://10.0.%d.%d:8000" % divmod(number, 10)) for number in range(count)]
    hits = [0] * count
    for number in range(20_000):
        order = weights(number_of(b"session %d" % number), urls)
        hits[order.index(max(order))] += 1
    mean = 20_000 / count
    chi_square = sum((hit - mean) ** 2 / mean for hit in hits)
    assert abs(chi_square - (count - 1)) < 4 * (2 * (count - 1)) ** 0.5


def test_minimal_movement() -> None:
    """When an endpoint goes only its own sessions move, and they spread over the others."""
    moved: Counter[str] = Counter()
    for session in SESSIONS:
        before, after = best(session, URLS), best(session, URLS[1:])
        assert before == URLS[0] or after == before
        moved[after] += before == URLS[0]
    assert all(abs(number - 250) < 75 for number in moved.values())


def test_weight_is_the_same_in_every_process() -> None:
    """The weight depends on nothing but its arguments, so that gateways agree and a restart moves nothing."""
    assert weights(number_of(b"session"), [number_of(b"http://vllm:8000")]) == [885732129709561781]
