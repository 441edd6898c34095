"""aiaas.plan.model: the methods of a Plan's values."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from aiaas.plan.model import EndpointPlan, RouteTarget
from tests.proxy.conftest import config_of, plan_of

HEADS = MappingProxyType({"/health": b"GET /health HTTP/1.1\r\nHost: vllm:8000\r\n"})


@pytest.mark.parametrize(
    ("address", "tls", "url"),
    [
        ("10.0.0.1", False, "http://10.0.0.1:8000/base"),
        ("fd00::1", False, "http://[fd00::1]:8000/base"),
        ("10.0.0.1", True, "https://10.0.0.1:8000/base"),
    ],
)
def test_an_endpoint_at_one_address_of_its_name(address: str, tls: bool, url: str) -> None:
    """Connections go to the address, requests name the host."""
    named = EndpointPlan("http://vllm:8000/base", "vllm", 8000, tls, "/base", HEADS)
    assert named.at(address) == EndpointPlan(url, address, 8000, tls, "/base", HEADS)


def test_targets_are_equal_if_they_name_the_same_backend() -> None:
    """The backends themselves are compared once, in the Plan."""
    (one,) = plan_of(config_of(["http://127.0.0.1:1"], {}, {})).backends
    changed, renamed = replace(one, timeout=one.timeout + 1), replace(one, name="other")
    target = RouteTarget(one, "m", None)
    assert target == RouteTarget(changed, "m", None)
    assert hash(target) == hash(RouteTarget(changed, "m", None))
    assert target != RouteTarget(renamed, "m", None)
    assert target != RouteTarget(one, "m", b'"m"')
    assert target != "m"
