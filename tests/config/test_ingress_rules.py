"""Rules about the Ingress: each fires where it should, and not where it need not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.ingress import CONTROLLERS, Controller
from aiaas.config.load import load_text

RESENDS = [(each, name) for each in CONTROLLERS for name in each.resends]
REWRITES = [(each, name) for each in CONTROLLERS for name in each.rewrites]
REFUSES = [(each, name) for each in CONTROLLERS for name in each.refuses]
REDIRECTS = [(each, name) for each in CONTROLLERS for name in each.redirects]


def found(*, expose: str = "ingress", **ingress: Any) -> list[str]:
    """The problems of an Ingress, without that of the retired controller: letter of the severity and code."""
    config = {
        "rate_limit": {"store": "redis://redis:6379"},
        "backends": {"v": {"url": "http://v:8000", "models": ["m"]}},
        "kubernetes": {
            "image": "r/a:1",
            "host": "h.example",
            "expose": expose,
            "ingress": {"class": "c", "controller_namespace": "edge"} | ingress,
        },
    }
    loaded = load_text(yaml.safe_dump(config), file="f", env={})
    assert not loaded.problems
    said = [f"{each.severity[0].upper()} {each.code}" for each in check(loaded, {}) if each.code != "AIA510"]
    return said


def one(controller: Controller, name: str, value: str, **more: Any) -> list[str]:
    """The problems of one annotation."""
    return found(controller=controller.name, annotations={name: value}, **more)


@pytest.mark.parametrize(("controller", "name"), RESENDS, ids=lambda each: getattr(each, "name", each))
def test_a_generation_is_never_sent_twice(controller: Controller, name: str) -> None:
    """Also among other words, and not where the Ingress is not used."""
    assert one(controller, name, "error timeout non_idempotent") == ["E AIA518"]
    assert one(controller, name, "error,non_idempotent") == ["E AIA518"]
    assert one(controller, name, "error timeout") == []
    assert one(controller, name, "non_idempotent", expose="none") == []


@pytest.mark.parametrize(("controller", "name"), REWRITES, ids=lambda each: getattr(each, "name", each))
def test_paths_are_not_rewritten(controller: Controller, name: str) -> None:
    """Whatever they become; another controller does not read it."""
    assert one(controller, name, "/$2") == ["E AIA518"]
    assert found(controller="traefik", annotations={name: "/$2"}) == []


@pytest.mark.parametrize(("controller", "name"), REFUSES, ids=lambda each: getattr(each, "name", each))
def test_limits_of_the_controller_are_warned_of(controller: Controller, name: str) -> None:
    """They answer with a page; a warning, since they may be a last resort."""
    assert one(controller, name, "5") == ["W AIA518"]


@pytest.mark.parametrize(("controller", "name"), REDIRECTS, ids=lambda each: getattr(each, "name", each))
def test_plain_http_is_redirected(controller: Controller, name: str) -> None:
    """In the controller's own words."""
    assert one(controller, name, "false") == ["E AIA511"]
    assert one(controller, name, "443" if controller.name == "alb" else "True") == []


@pytest.mark.parametrize(
    ("controller", "name", "value", "problems"),
    [
        ("ingress-nginx", "nginx.ingress.kubernetes.io/proxy-read-timeout", "600", []),
        ("ingress-nginx", "nginx.ingress.kubernetes.io/proxy-read-timeout", "600s", ["E AIA501"]),
        ("ingress-nginx", "nginx.ingress.kubernetes.io/proxy-send-timeout", "10m", ["E AIA501"]),
        ("nginx-inc", "nginx.org/proxy-read-timeout", "600s", []),
        ("haproxytech", "haproxy.org/timeout-server", "600s", []),
        ("haproxytech", "haproxy.org/timeout-server", "10s", ["E AIA501"]),
    ],
)
def test_a_timeout_is_written_as_its_controller_reads_it(
    controller: str, name: str, value: str, problems: list[str]
) -> None:
    """ingress-nginx ignores a unit, and silently has its 60 s."""
    assert found(controller=controller, annotations={name: value}) == problems


@pytest.mark.parametrize(
    ("ingress", "problems"),
    [
        ({"class": "nginx", "controller": "nginx-inc"}, []),
        ({"class": "nginx", "controller": "traefik"}, ["W AIA519"]),
        ({"class": "alb", "controller": "gce"}, ["W AIA519"]),
        ({"class": "nginx", "controller": "none"}, []),
        ({"class": "internal", "controller": "haproxytech"}, []),
    ],
    ids=["one of two", "another", "another cloud", "nobody", "a name that tells nothing"],
)
def test_class_and_controller_agree(ingress: dict[str, str], problems: list[str]) -> None:
    """A warning: an operator may name a class as they like."""
    assert found(**ingress) == problems
