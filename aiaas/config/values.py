"""Values with a unit: durations, sizes, and the plain kinds (flag, whole number) as they arrive from YAML or the
environment.

A quantity without its unit is refused: `timeout: 120` is 120 seconds to one reader and 120 milliseconds to the next.
Only 0 needs none. Numbers and flags may also be text, since an environment variable is nothing else.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, PlainSerializer

DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds
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
LONGEST_DURATION: Final = 7 * 24 * 3600.0  # a week: beyond it a typo is likelier than a wish

DURATION_HINT: Final = "write a number with a unit, such as 500ms, 120s, 2m or 1h"
SIZE_HINT: Final = "write a whole number with a unit, such as 512KiB, 10MiB or 10MB"

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h)")
_SIZE = re.compile(r"([0-9]{1,12}) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{1,5})?")
_QUANTITY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(m|k|M|G|T|Ki|Mi|Gi|Ti|)")
QUANTITY_SUFFIXES: Final = {
    "": 1.0,
    "m": 0.001,
    **{suffix: 1000.0**power for power, suffix in enumerate("kMGT", start=1)},
    **{suffix: 1024.0**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1)},
}
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


def parse_duration(value: object) -> float:
    """Seconds from `120s`, `2m`, `500ms`, `1h` or 0. Raises ValueError."""
    if _is_zero(value):
        return 0.0
    if _is_bare_number(value):
        raise ValueError(f"{value} has no unit, so it could be seconds or milliseconds; write {value}s or {value}ms")
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be a duration; {DURATION_HINT}")
    seconds = float(match[1]) * DURATION_UNITS[match[2]]
    if seconds > LONGEST_DURATION:
        raise ValueError("must be at most 168h (a week)")
    return seconds


def parse_positive_duration(value: object) -> float:
    """As `parse_duration`, but 0 is refused too."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"must be longer than 0; {DURATION_HINT}")
    return seconds


def parse_size(value: object) -> int:
    """Bytes from `10MiB`, `10MB` or 0. Raises ValueError."""
    if _is_zero(value):
        return 0
    if _is_bare_number(value):
        raise ValueError(f"{value} has no unit; write {value}B, or rather something like 10MiB")
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be a size; {SIZE_HINT}")
    return int(match[1]) * SIZE_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest way to write it that reads back as the same: `2m`, `1500ms`, `0s`."""
    for unit in ("h", "m", "s"):
        if seconds and seconds % DURATION_UNITS[unit] == 0:
            return f"{int(seconds / DURATION_UNITS[unit])}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms" if seconds else "0s"


def format_size(size: int) -> str:
    """The shortest way to write it in binary units: `10MiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def amount_of(quantity: str) -> float:
    """A Kubernetes quantity in units: `500m` is half a CPU, `512Mi` are bytes (apimachinery, resource.Quantity)."""
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not a Kubernetes quantity")
    return float(match[1]) * QUANTITY_SUFFIXES[match[2]]


def _is_zero(value: object) -> bool:
    return value == "0" or (isinstance(value, int | float) and not isinstance(value, bool) and value == 0)


def _is_bare_number(value: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value) is not None
    )


def _parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError("must be true or false")


def _parse_count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**63:
            raise ValueError("must be a whole number below 2^63")
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value)
    raise ValueError("must be a whole number")


def _parse_quantity(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return value
    raise ValueError("must be a Kubernetes quantity, such as 500m, 1, 256Mi or 2Gi")


def _parse_origin(value: object) -> object:
    """An origin as browsers write it (RFC 6454 section 6.2), for it is compared with theirs."""
    if not isinstance(value, str) or value == "*":
        return value
    match = _ORIGIN.fullmatch(value.lower())
    if match is None:
        raise ValueError("must be an origin such as https://chat.example.com (no path, no slash at the end), or *")
    default = {"http": ":80", "https": ":443"}.get(match["scheme"])
    return match[0].removesuffix(match["port"]) if match["port"] and match["port"] == default else match[0]


DURATION_PATTERN: Final = r"^(0|[0-9]+(\.[0-9]+)? ?(ms|s|m|h))$"
SIZE_PATTERN: Final = r"^(0|[0-9]+ ?(B|[kK]B|MB|GB|KiB|MiB|GiB))$"

_DURATION_SCHEMA = Annotated[str, Field(pattern=DURATION_PATTERN)]
_SIZE_SCHEMA = Annotated[str, Field(pattern=SIZE_PATTERN)]

Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=_DURATION_SCHEMA),
    PlainSerializer(format_duration, return_type=str),
]
PositiveDuration = Annotated[
    float,
    BeforeValidator(parse_positive_duration, json_schema_input_type=_DURATION_SCHEMA),
    PlainSerializer(format_duration, return_type=str),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size, json_schema_input_type=_SIZE_SCHEMA),
    PlainSerializer(format_size, return_type=str),
]
Flag = Annotated[bool, BeforeValidator(_parse_flag, json_schema_input_type=bool)]
Count = Annotated[int, BeforeValidator(_parse_count, json_schema_input_type=int)]
Quantity = Annotated[str, BeforeValidator(_parse_quantity, json_schema_input_type=str | int | float)]

Origin = Annotated[str, BeforeValidator(_parse_origin, json_schema_input_type=str)]

AtLeast1 = Annotated[Count, Field(ge=1)]
AtLeast0 = Annotated[Count, Field(ge=0)]
Port = Annotated[Count, Field(ge=1, le=65535)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
