"""Shared parts of services: amounts, health checks, and text that Compose must not expand."""

from __future__ import annotations

import pytest

from aiaas.config.kubernetes import ResourceAmounts
from aiaas.manifests.compose_parts import health_program, limits_of, literal, size_of


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        pytest.param("2Gi", "2g", id="whole gibibytes"),
        pytest.param("512Mi", "512m", id="mebibytes"),
        pytest.param("1536Mi", "1536m", id="more than a gibibyte"),
        pytest.param("4Ki", "4k", id="kibibytes"),
        pytest.param("1500M", "1500000000b", id="not a multiple of 1024"),
        pytest.param("0.5Gi", "512m", id="a fraction"),
    ],
)
def test_sizes_mean_the_same_for_docker(quantity: str, expected: str) -> None:
    """Docker's units are powers of 1024."""
    assert size_of(quantity) == expected


def test_limits_that_are_not_set_are_left_out() -> None:
    """An empty mapping sets no limit."""
    assert limits_of(ResourceAmounts(cpu="250m")) == {"cpus": "0.25"}
    assert limits_of(ResourceAmounts()) == {}


def test_dollars_are_doubled() -> None:
    """Compose reads `$$` as a dollar."""
    assert literal("a$b${C}") == "a$$b$${C}"


def test_health_program_fails_without_a_server(unused_tcp_port: int) -> None:
    """A refused connection is an exception, and so a failed check."""
    with pytest.raises(OSError, match="refused"):
        exec(health_program(unused_tcp_port, seconds=1), {})
