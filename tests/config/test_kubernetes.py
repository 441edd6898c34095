"""The `kubernetes` section."""

from __future__ import annotations

import pytest

from aiaas.config.kubernetes import Ingress


@pytest.mark.parametrize(
    ("section", "controllers"),
    [
        ({}, ["ingress-nginx"]),
        ({"controller_namespace": "edge"}, ["ingress-nginx", "nginx-inc"]),
        ({"controller": "traefik"}, ["traefik"]),
        ({"class": "internal"}, []),
    ],
    ids=["defaults", "a namespace that tells nothing", "named", "unknown"],
)
def test_an_ingress_knows_its_controllers(section: dict[str, str], controllers: list[str]) -> None:
    """By name, else by class and namespace."""
    assert [each.name for each in Ingress.model_validate(section).controllers()] == controllers
