"""The meaning of an Ingress controller's annotations."""

from __future__ import annotations

from typing import get_args

import pytest

from aiaas.config.ingress import ControllerName, bytes_of, controllers_of, seconds_of


@pytest.mark.parametrize(
    ("class_name", "controllers"),
    [
        ("nginx", ["ingress-nginx", "nginx-inc"]),
        ("nginx-internal", ["ingress-nginx", "nginx-inc"]),
        ("webapprouting.kubernetes.azure.com", ["ingress-nginx", "nginx-inc"]),
        ("public", ["ingress-nginx", "nginx-inc"]),
        ("haproxy", ["haproxytech", "haproxy-ingress"]),
        ("Traefik", ["traefik"]),
        ("alb", ["alb"]),
        ("gce", ["gce"]),
        ("gce-internal", ["gce"]),
        ("internal", []),
        ("albatross", []),
    ],
)
def test_a_controller_is_guessed_from_its_class(class_name: str, controllers: list[str]) -> None:
    """Two share a name in two cases; the controller of a class with an unknown name is unknown."""
    assert [each.name for each in controllers_of(class_name)] == controllers


@pytest.mark.parametrize(
    ("class_name", "namespace", "controllers"),
    [
        ("nginx", "ingress-nginx", ["ingress-nginx"]),
        ("nginx", "nginx-ingress", ["nginx-inc"]),
        ("haproxy", "haproxy-controller", ["haproxytech"]),
        ("haproxy", "edge", ["haproxytech", "haproxy-ingress"]),
        ("traefik", "ingress-nginx", ["traefik"]),
    ],
)
def test_a_usual_namespace_tells_two_apart(class_name: str, namespace: str, controllers: list[str]) -> None:
    """Where a chart installs one of them; it decides nothing else."""
    assert [each.name for each in controllers_of(class_name, namespace=namespace)] == controllers


@pytest.mark.parametrize("name", get_args(ControllerName))
def test_a_named_controller_needs_no_guess(name: ControllerName) -> None:
    """It wins over the class; `none` is nobody."""
    assert [each.name for each in controllers_of("nginx", name)] == ([] if name == "none" else [name])


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
