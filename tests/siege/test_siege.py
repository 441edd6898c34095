"""The floods that once killed a gateway in 512 MiB, and short ones against a gateway of the suite's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.siege.__main__ import FLOODS, Flood, siege
from tests.siege.attack import KINDS
from tests.siege.innocents import Seen
from tests.soak.finding import as_text


@pytest.mark.siege
@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.kind)
def test_a_flood_leaves_the_gateway_alive_and_others_served(flood: Flood, tmp_path: Path) -> None:
    """Thousands of connections for 20 s, in a cgroup with the manifests' limit."""
    findings = siege(tmp_path, [flood], 20.0, print)
    print(as_text(findings))
    assert all(each.holds for each in findings), as_text(findings)


def test_failures_are_counted_in_a_row() -> None:
    """By when they began, whichever ended first."""
    seen = Seen(waits=[(3.0, 0.1), (0.0, 0.1)], failures=[(4.0, "x"), (1.0, "x"), (2.0, "x")])
    assert (seen.count, seen.failed, seen.failed_in_a_row) == (5, 0.6, 2)
    assert seen.between(0.5, 3.5).failures == [(1.0, "x"), (2.0, "x")]
    assert (seen.quantile(0.5), Seen().failed) == (0.1, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_flood_is_of_what_it_says(kind: str) -> None:
    """Bytes that leave a connection in the state that the flood needs: only `asked` sends a whole request."""
    data = KINDS[kind]("sk-key")
    assert data.endswith(b"\r\n\r\n") == (kind == "asked")
    assert len(data) < 70_000
