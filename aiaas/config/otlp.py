"""Rules about `monitoring.traces`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from aiaas.config import codes
from aiaas.config.address import parse_url
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.yamltree import Path

GRPC_PORT: Final = 4317
# Headers that aiaas writes itself.
_OWN: Final = frozenset(
    {"accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"}
)
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


def check_traces(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Report a collector that cannot be reached by OTLP over HTTP, and headers that cannot be sent to it."""
    traces = config.monitoring.traces
    if traces is None:
        return
    place: Path = ("monitoring", "traces")
    try:
        port = parse_url(traces.endpoint).port
    except ValueError as error:
        yield codes.COLLECTOR, "error", (*place, "endpoint"), str(error)
    else:
        if port == GRPC_PORT:
            message = f"{port} is the port of OTLP over gRPC, and aiaas speaks HTTP, usually at 4318; write that port"
            yield codes.COLLECTOR, "warning", (*place, "endpoint"), message
    for name, value in traces.headers.items():
        at = (*place, "headers", name)
        if not _NAME.fullmatch(name):
            yield codes.COLLECTOR, "error", at, "is not a valid header name; use letters, digits and dashes"
        elif name.lower() in _OWN:
            yield codes.COLLECTOR, "error", at, "aiaas writes this header itself; remove it"
        elif not _VALUE.fullmatch(value):
            yield codes.COLLECTOR, "error", at, "is empty, or has characters that a header cannot hold; correct it"
