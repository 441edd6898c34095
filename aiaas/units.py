"""Values with a unit: durations (`500ms 45s 30m 2h 90d 2w`) and sizes, in one form for the config and all options.

A value without a unit is rejected: one reader takes `timeout: 120` for seconds, the next for milliseconds. Only 0 needs
no unit.
"""

from __future__ import annotations

import re
from typing import Final

DAY: Final = 86_400  # seconds
DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}  # seconds
SIZE_UNITS: Final = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}

DURATION_HINT: Final = "write a number with a unit, such as 500ms, 45s, 30m, 2h, 90d or 2w"
SIZE_HINT: Final = "write a whole number with a unit, such as 512KiB, 10MiB or 10MB"

# For a JSON schema.
DURATION_PATTERN: Final = r"^(0|[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d|w))$"
SIZE_PATTERN: Final = r"^(0|[0-9]+ ?(B|[kK]B|MB|GB|KiB|MiB|GiB))$"

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d|w)")
_SIZE = re.compile(r"([0-9]{1,12}) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def parse_duration(value: object) -> float:
    """Return seconds. Raises a ValueError that names the allowed form."""
    if _is_zero(value):
        return 0.0
    if _is_bare_number(value):
        raise ValueError(f"{value} has no unit, so it could be seconds or milliseconds; write {value}s or {value}ms")
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be a duration; {DURATION_HINT}")
    return float(match[1]) * DURATION_UNITS[match[2]]


def parse_positive_duration(value: object) -> float:
    """Like `parse_duration`, but also rejects 0."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"must be longer than 0; {DURATION_HINT}")
    return seconds


def parse_size(value: object) -> int:
    """Return bytes from `10MiB`, `10MB` or 0. Raises ValueError."""
    if _is_zero(value):
        return 0
    if _is_bare_number(value):
        raise ValueError(f"{value} has no unit; write {value}B, or a size such as 10MiB")
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be a size; {SIZE_HINT}")
    return int(match[1]) * SIZE_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """Format seconds in a short form that parses back to the same value: `2m`, `1500ms`, `0s`; days become hours."""
    for unit in ("h", "m", "s"):
        if seconds and seconds % DURATION_UNITS[unit] == 0:
            return f"{int(seconds / DURATION_UNITS[unit])}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms" if seconds else "0s"


def format_size(size: int) -> str:
    """Format bytes in the largest binary unit that divides them: `10MiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def _is_zero(value: object) -> bool:
    return value == "0" or (isinstance(value, int | float) and not isinstance(value, bool) and value == 0)


def _is_bare_number(value: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and _NUMBER.fullmatch(value) is not None
    )
