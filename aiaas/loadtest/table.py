"""A table of a report, and how its figures are written. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class ReportTable(msgspec.Struct, frozen=True):
    """Rows below headers; the first column is text, the others are figures."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def to_markdown(table: ReportTable) -> str:
    """Write a table in GitHub's Markdown."""
    headers = [header.replace("|", "\\|") or " " for header in table.headers]
    lines = [f"### {table.title}", "", _markdown_row(headers)]
    lines.append(_markdown_row(["---", *("---:" for _ in table.headers[1:])]))
    lines += [_markdown_row([cell.replace("|", "\\|") for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def seconds(value: float) -> str:
    """Format a duration for people: `842 us`, `51.3 ms`, `1.24 s`, `83 s`."""
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 60 else f"{value:.0f} s"


def number(value: float) -> str:
    """Format a figure with about three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(value: float) -> str:
    """Format a share as a percentage, without rounding small shares to 0."""
    return f"{value * 100:.2f} %" if 0 < value < 0.1 else f"{value * 100:.1f} %" if value else "0 %"
