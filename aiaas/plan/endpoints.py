"""An address of a backend -> its EndpointPlan, with the first bytes of every request to it. Pure."""

from __future__ import annotations

from types import MappingProxyType

from aiaas.config.address import Address
from aiaas.config.backend import Backend
from aiaas.openai.paths import GENERATE, METRICS, MODELS, OPENAPI
from aiaas.plan.model import EndpointPlan, TrustPlan


def compile_endpoint(
    address: Address, backend: Backend, key: str | None, trust: TrustPlan, *, drain: bool = False
) -> EndpointPlan:
    """The endpoint at `address`; `key` is the backend's own."""
    # GET is for aiaas's own requests: the probe, the lists of models and of paths, and the load. POST is for every path
    # of the API, since a reload may remove a path from a backend while a request to that path waits there.
    paths = {backend.health.path: "GET", MODELS: "GET", METRICS: "GET", OPENAPI: "GET"} | dict.fromkeys(
        GENERATE, "POST"
    )
    return EndpointPlan(
        url=address.url,
        host=address.host,
        port=address.port,
        tls=address.tls,
        base_path=address.base_path,
        heads=MappingProxyType({path: _head(method, address, path, key) for path, method in paths.items()}),
        trust=trust if address.tls else TrustPlan(),
        drain=drain,
    )


def _head(method: str, address: Address, path: str, key: str | None) -> bytes:
    """Start line, Host (RFC 9112 section 3.2), and the headers that all requests to this path share."""
    lines = [
        f"{method} {address.base_path}{path} HTTP/1.1",
        f"Host: {address.authority}",
        "Accept-Encoding: identity",  # a compressed stream could be neither scanned nor relayed event by event
    ]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
