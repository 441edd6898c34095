"""Times, sizes and numbers as people read them."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SHORT: Final = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZES: Final = ("B", "kB", "MB", "GB")


def time_span(seconds: float) -> str:
    """`3 d 4 h`, `12 min`, `20 s`: the largest unit, and the next one where it is small; `1.25 s`, `62 ms`."""
    if seconds < 10:
        for size, unit in _SHORT:
            if seconds >= size:
                return f"{seconds / size:.3g} {unit}"
        return "0 s"
    rest, parts = round(seconds), list[tuple[int, str]]()
    for size, unit in _SPANS:
        number, rest = divmod(rest, size)
        if number or parts:
            parts.append((number, unit))
    first, *others = parts
    second = others[0] if others and first[0] < 10 else (0, "")
    return " ".join(f"{number} {unit}" for number, unit in (first, second) if number)


def size(count: int) -> str:
    """`512 B`, `1.2 kB`."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_SIZES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_SIZES[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_SIZES[unit]}"


def clock_time(moment: float) -> str:
    """A moment (POSIX seconds) in the local time of this machine."""
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
