"""The proxies of these tests are configured by the rendering: nothing of it is left out, and nothing added.

These need no proxy. A changed annotation needs a changed translator, so that `nox -s proxies` measures the change.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proxies.rendered import GATEWAY_API, Place, UntranslatedError, rendering
from tests.proxies.servers import CONTROLLERS

PLACE = Place(Path("/folder"), 80, 443, Path("/tls.pem"), Path("/tls.pem.key"), gateways=(8081, 8082))


def configuration(controller: str, made: dict[str, object], place: Place = PLACE) -> str:
    """Every file of a controller's proxy."""
    found = CONTROLLERS[controller]
    return "\n".join([*found.files(made, place).values(), *found.started(made, place).values()])


def exposed(controller: str, **options: object) -> dict[str, object]:
    """The object that exposes the gateway."""
    made = rendering(controller, **options)  # type: ignore[arg-type]
    return dict(made["HTTPRoute" if controller == GATEWAY_API else "Ingress"])


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_every_rendering_is_translated(controller: str) -> None:
    """Every gateway, every path, both ports; nothing raises UntranslatedError."""
    text = configuration(controller, exposed(controller))
    assert {part for part in ("8081", "8082", "/v1", "/health", "443") if part not in text} == set()


@pytest.mark.parametrize("controller", [name for name in CONTROLLERS if name != GATEWAY_API])
def test_an_unknown_annotation_is_a_failure(controller: str) -> None:
    """So a change of the rendering is not forgotten here."""
    made = exposed(controller)
    annotations = made["metadata"]["annotations"]  # type: ignore[index]
    prefix = next(name.rpartition("/")[0] for name in annotations if "cert-manager" not in name)
    annotations[f"{prefix}/other"] = "1"
    with pytest.raises(UntranslatedError, match="other"):
        configuration(controller, made)


def test_an_unknown_field_of_a_route_is_a_failure() -> None:
    """Of its rule, as well as of its timeouts."""
    made = exposed(GATEWAY_API)
    made["spec"]["rules"][0]["filters"] = []  # type: ignore[index]
    with pytest.raises(UntranslatedError, match="filters"):
        configuration(GATEWAY_API, made)


@pytest.mark.parametrize(
    ("controller", "annotation", "with_it", "without_it"),
    [
        ("ingress-nginx", "proxy-body-size", "client_max_body_size 4m", "client_max_body_size 1m"),
        ("ingress-nginx", "proxy-read-timeout", "proxy_read_timeout 429s", "proxy_read_timeout 60s"),
        ("nginx-inc", "proxy-buffering", "proxy_buffering off", "proxy_buffering on"),
        ("haproxytech", "timeout-server", "timeout server 429s", "timeout server 50s"),
        ("haproxy-ingress", "proxy-body-size", "sub(4194304)", None),
        ("haproxy-ingress", "config-backend", "option http-no-delay", None),
        ("openshift", "timeout", "timeout server 429s", "timeout server 30s"),
        ("traefik", "router.entrypoints", "- websecure", "- web\n"),
        (GATEWAY_API, "timeouts", "timeout: 0s", None),
    ],
)
def test_without_an_annotation_the_default_holds(
    controller: str, annotation: str, with_it: str, without_it: str | None
) -> None:
    """The controller's own, which is what the rendering is there to change."""
    full, bare = (configuration(controller, exposed(controller, without=each)) for each in ((), (annotation,)))
    assert with_it in full
    assert with_it not in bare or annotation == "router.entrypoints"
    assert without_it is None or without_it in bare


@pytest.mark.parametrize("controller", ["haproxytech", "haproxy-ingress", "openshift"])
def test_the_notes_are_the_operators_part(controller: str) -> None:
    """An option that no annotation sets is there only if the operator has set it."""
    made = exposed(controller)
    defaults = [
        configuration(controller, made, Place(**{**vars(PLACE), "noted": noted})).partition("frontend")[0]
        for noted in (True, False)
    ]
    assert ["option abortonclose" in each for each in defaults] == [True, False]
