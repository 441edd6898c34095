"""The types of values in a config, as they arrive from YAML or the environment: durations, sizes (`units.py`), flags,
whole numbers, quantities of Kubernetes, origins.

Numbers and flags may also be text, since environment variables are always text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator

from aiaas.openai.paths import GENERATE, HEALTH, METRICS, MODELS, READY
from aiaas.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_positive_duration,
    parse_size,
)

# Seconds: the bounds of aiaas_time_to_first_token_seconds. Prometheus can judge an objective at these only.
TTFT_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
LONGEST_DURATION: Final = 7 * 24 * 3600.0  # a week: a longer duration is more likely a typo

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_FIRST_SEGMENTS: Final = frozenset(path.split("/")[1] for path in (*GENERATE, MODELS, HEALTH, READY, METRICS))
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


def amount_of(quantity: str) -> float:
    """Return a Kubernetes quantity as a number: `500m` is 0.5, `512Mi` is bytes (apimachinery, resource.Quantity)."""
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not a Kubernetes quantity")
    return float(match[1]) * QUANTITY_SUFFIXES[match[2]]


def _bounded(parse: Callable[[object], float]) -> Callable[[object], float]:
    def bounded(value: object) -> float:
        seconds = parse(value)
        if seconds > LONGEST_DURATION:
            raise ValueError("must be at most 1w (a week)")
        return seconds

    return bounded


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


def _parse_auto_or_count(value: object) -> object:
    if value == "auto":
        return value
    try:
        count = _parse_count(value)
    except ValueError as error:
        raise ValueError(f"{error}, or `auto`") from None
    if count < 1:
        raise ValueError("must be at least 1, or `auto`")
    return count


def _parse_quantity(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return value
    raise ValueError("must be a Kubernetes quantity, such as 500m, 1, 256Mi or 2Gi")


def _parse_origin(value: object) -> object:
    """Return an origin as browsers write it (RFC 6454 section 6.2), since it is compared with the Origin header."""
    if not isinstance(value, str) or value == "*":
        return value
    match = _ORIGIN.fullmatch(value.lower())
    if match is None:
        raise ValueError("must be an origin such as https://chat.example.com (no path, no slash at the end), or *")
    default = {"http": ":80", "https": ":443"}.get(match["scheme"])
    return match[0].removesuffix(match["port"]) if match["port"] and match["port"] == default else match[0]


def _parse_path_prefix(value: object) -> object:
    if not isinstance(value, str):
        return value
    segments = value.split("/")[1:]
    if not _PREFIX.fullmatch(value) or not {".", ".."}.isdisjoint(segments):
        raise ValueError("must be a path such as /llm, without / at its end and without characters that need encoding")
    if "v1" in segments:
        raise ValueError("must not contain /v1, since requests include it; write what comes before /v1")
    if segments[0] in _FIRST_SEGMENTS:
        raise ValueError(f"must not begin with /{segments[0]}, which is a path of the gateway itself")
    return value


def _among_bounds(seconds: float) -> float:
    if seconds not in TTFT_BOUNDS:
        raise ValueError(f"must be one of {', '.join(map(format_duration, TTFT_BOUNDS))}")
    return seconds


_DURATION_SCHEMA = Annotated[str, Field(pattern=DURATION_PATTERN)]
_PREFIX_SCHEMA = Annotated[str, Field(pattern=f"^{_PREFIX.pattern}$")]
_SIZE_SCHEMA = Annotated[str, Field(pattern=SIZE_PATTERN)]

Duration = Annotated[
    float,
    BeforeValidator(_bounded(parse_duration), json_schema_input_type=_DURATION_SCHEMA),
    PlainSerializer(format_duration, return_type=str),
]
PositiveDuration = Annotated[
    float,
    BeforeValidator(_bounded(parse_positive_duration), json_schema_input_type=_DURATION_SCHEMA),
    PlainSerializer(format_duration, return_type=str),
]
TtftBound = Annotated[PositiveDuration, AfterValidator(_among_bounds)]
Size = Annotated[
    int,
    BeforeValidator(parse_size, json_schema_input_type=_SIZE_SCHEMA),
    PlainSerializer(format_size, return_type=str),
]
Flag = Annotated[bool, BeforeValidator(_parse_flag, json_schema_input_type=bool)]
Count = Annotated[int, BeforeValidator(_parse_count, json_schema_input_type=int)]
Quantity = Annotated[str, BeforeValidator(_parse_quantity, json_schema_input_type=str | int | float)]

PathPrefix = Annotated[str, BeforeValidator(_parse_path_prefix, json_schema_input_type=_PREFIX_SCHEMA)]
Origin = Annotated[str, BeforeValidator(_parse_origin, json_schema_input_type=str)]

AtLeast1 = Annotated[Count, Field(ge=1)]
AtLeast0 = Annotated[Count, Field(ge=0)]
Port = Annotated[Count, Field(ge=1, le=65535)]
AutoOrAtLeast1 = Annotated[
    int | Literal["auto"],
    PlainValidator(_parse_auto_or_count, json_schema_input_type=Annotated[int, Field(ge=1)] | Literal["auto"]),
]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
