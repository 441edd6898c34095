"""aiaas.plan.endpoints: what an address is sent, and whom it has to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.config.address import parse_url
from aiaas.config.backend import Backend
from aiaas.plan.endpoints import compile_endpoint
from aiaas.plan.model import TrustPlan

TRUST = TrustPlan(Path("ca.pem"), "vllm", "backends.a.tls")


@pytest.mark.parametrize(("scheme", "trust"), [("http", TrustPlan()), ("https", TRUST)])
def test_only_an_https_address_is_verified(scheme: str, trust: TrustPlan) -> None:
    """So that a file that nothing is verified with is not read."""
    url = f"{scheme}://vllm"
    endpoint = compile_endpoint(parse_url(url), Backend(url=url, models=("m",)), "secret", TRUST)
    assert (endpoint.tls, endpoint.trust) == (scheme == "https", trust)
    assert endpoint.heads["/health"].endswith(b"Authorization: Bearer secret\r\n")
