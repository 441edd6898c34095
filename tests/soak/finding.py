"""One result of the soak: a measured value, and whether it is within its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at, what was `seen`, what is `wanted`, and whether the one is within the other."""

    what: str
    seen: str
    wanted: str
    holds: bool


def as_text(findings: Sequence[Finding]) -> str:
    """A table, one line each."""
    rows = [("", "what", "seen", "wanted")]
    rows += [("ok" if each.holds else "NOT", each.what, each.seen, each.wanted) for each in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through (x, y) that fits best by least squares; NaN where all x are the same."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else math.nan
