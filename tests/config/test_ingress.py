"""The meaning of an Ingress controller's annotations."""

from __future__ import annotations

import pytest

from aiaas.config.ingress import bytes_of, family_of, seconds_of


@pytest.mark.parametrize(
    ("class_name", "family"),
    [("nginx", "nginx"), ("nginx-internal", "nginx"), ("haproxy", "haproxy"), ("Traefik", "traefik"), ("alb", None)],
)
def test_a_controller_is_known_by_its_class(class_name: str, family: str | None) -> None:
    """The controller of a class with an unknown name is unknown."""
    found = family_of(class_name)
    assert (found.name if found else None) == family


@pytest.mark.parametrize(
    ("value", "seconds"), [("120", 120), ("120s", 120), (" 2m ", 120), ("1500ms", 1.5), ("1h", 3600), ("soon", None)]
)
def test_a_timeout_is_read_as_nginx_and_haproxy_write_it(value: str, seconds: float | None) -> None:
    """nginx's plain number is seconds; haproxy's has a unit."""
    assert seconds_of(value) == seconds


@pytest.mark.parametrize(
    ("value", "size"), [("8m", 8 * 1024**2), ("1K", 1024), ("1g", 1024**3), ("100", 100), ("0", 0), ("ten", None)]
)
def test_a_size_is_read_as_nginx_and_haproxy_write_it(value: str, size: int | None) -> None:
    """Binary units in either case."""
    assert bytes_of(value) == size
