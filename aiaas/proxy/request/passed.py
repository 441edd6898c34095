"""The headers of a client that go upstream with its request."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiaas.openai import paths
from aiaas.proxy.telemetry.record import Record

_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Of the client's headers these go upstream, besides those that the config names.
_TRACED = ("content-type", "accept")
_FORWARDED = (*_TRACED, "traceparent", "tracestate")  # unless the gateway has a trace of its own to send
# And these on Anthropic's paths: they choose the version of that API and its beta features.
ANTHROPIC_HEADERS = ("anthropic-version", "anthropic-beta")
_TRACED_ANTHROPIC = (*_TRACED, *ANTHROPIC_HEADERS)
_FORWARDED_ANTHROPIC = (*_FORWARDED, *ANTHROPIC_HEADERS)


def passed_headers(headers: Mapping[str, str], record: Record) -> bytes:
    """Header lines that go upstream: the request's media type, a few of its headers, the id, and the trace."""
    lines = f"x-request-id: {record.request_id}\r\n"
    anthropic = record.path in paths.ANTHROPIC
    if record.trace is not None:
        lines += record.trace.lines
        return header_values(headers, _TRACED_ANTHROPIC if anthropic else _TRACED, lines)
    return header_values(headers, _FORWARDED_ANTHROPIC if anthropic else _FORWARDED, lines)


def header_values(headers: Mapping[str, str], names: tuple[str, ...], lines: str = "") -> bytes:
    """`lines`, and header lines of the `names` in `headers`, without control characters, which are invalid in a
    value."""
    for name in names:
        value = headers.get(name)
        if value is not None:
            if not value.isprintable():
                value = _UNSAFE.sub("", value)
            lines += f"{name}: {value}\r\n"
    return lines.encode("utf-8", "surrogateescape")
