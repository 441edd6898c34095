"""aiaas.config.addresses: what is wrong with the addresses of backends. Every message: `cases/*.case`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.load import load_text

A, B = "http://a:1", "http://b:1"
DRAINS = {"url": A, "drain": True}


@pytest.mark.parametrize(
    ("backend", "found"),
    [
        ({"urls": [A, {"url": B}]}, []),
        ({"urls": [DRAINS, B]}, []),
        ({"urls": [DRAINS, {"url": B, "drain": False}]}, []),
        ({"urls": [DRAINS]}, ["AIA228"]),
        ({"urls": [DRAINS, {"url": B, "drain": True}]}, ["AIA228"]),
        ({"urls": [DRAINS], "enabled": False}, []),
        ({"urls": [DRAINS, A]}, ["AIA203"]),
        ({"urls": [{"url": "a:1"}, B]}, ["AIA203"]),
        ({"urls": [A], "url": B}, ["AIA202"]),
        ({}, ["AIA202"]),
    ],
)
def test_addresses_are_judged_in_both_forms(backend: dict[str, Any], found: list[str]) -> None:
    """Text and mapping mean the same, an address stands once, and at least one replica must not drain."""
    other = {"url": "http://other:1", "models": ["n"]}
    text = yaml.safe_dump({"backends": {"v": {"models": ["m"], **backend}, "w": other}})
    assert [problem.code for problem in check(load_text(text, file="f", env={}), {})] == found
