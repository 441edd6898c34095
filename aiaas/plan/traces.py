"""`monitoring.traces` -> TracesPlan. Pure."""

from __future__ import annotations

import math
from types import MappingProxyType

from aiaas import __version__
from aiaas.config.address import parse_url
from aiaas.config.model import Traces
from aiaas.plan.model import TRACES_PATH, EndpointPlan, TracesPlan


def compile_traces(traces: Traces) -> TracesPlan:
    """The plan of checked settings."""
    address = parse_url(traces.endpoint)
    headers = {
        "Host": address.authority,
        "User-Agent": f"aiaas/{__version__}",
        "Accept-Encoding": "identity",
        **traces.headers,
    }
    lines = [
        f"POST {address.base_path}{TRACES_PATH} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return TracesPlan(
        collector=EndpointPlan(
            url=address.url,
            host=address.host,
            port=address.port,
            tls=address.tls,
            base_path=address.base_path,
            heads=MappingProxyType({TRACES_PATH: head}),
        ),
        sample_ratio=traces.sample_ratio,
        slow_after=math.inf if traces.slow_after is None else traces.slow_after,
        slow_ttft=math.inf if traces.slow_ttft is None else traces.slow_ttft,
        engine_spans=traces.engine_spans,
    )
