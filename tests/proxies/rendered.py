"""The rendering of `aiaas render` for a controller, to be translated into that controller's own configuration.

Each translator (`nginx.py`, `haproxy.py`, `traefik.py`, `envoy.py`) reads an Ingress or an HTTPRoute as its controller
does, and fails at an annotation or a field that it does not know: a change of the rendering needs one there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.manifests.rendering import objects_of

HOST: Final = "localhost"
LARGEST_BODY: Final = 2 * 1024**2  # bytes that the gateway accepts: above nginx's own bound of 1 MiB
SERVER: Final = {"max_body_size": f"{LARGEST_BODY}B", "max_upload_size": f"{LARGEST_BODY}B"}
GATEWAY_API: Final = "gateway-api"  # the word for `expose: gateway`, beside the names of controllers

_CONFIG: Final = """\
server: {{max_body_size: {largest}B, max_upload_size: {largest}B}}
backends: {{vllm: {{url: 'http://vllm.system:8000', models: [m]}}}}
kubernetes: {{image: 'r/aiaas:1', host: {host}, {exposed}}}
"""
_ISSUER: Final = "cert-manager.io/cluster-issuer"  # not for the controller


class UntranslatedError(Exception):
    """The rendering has an annotation or a field that the translator does not know."""


@dataclass(frozen=True)
class Place:
    """Where a proxy listens, and what it is configured with.

    folder    holds its files
    gateways  the ports of the gateways, as the endpoints of the Service
    noted     whether the operator has done what the notes of `aiaas render` ask for
    """

    folder: Path
    http: int
    https: int
    certificate: Path
    key: Path
    gateways: tuple[int, ...]
    noted: bool = True

    def at(self, *gateways: int) -> Place:
        """The same before other gateways."""
        return replace(self, gateways=gateways)


class Annotations:
    """An Ingress's annotations, each to be taken once."""

    def __init__(self, made: Mapping[str, Any], prefix: str) -> None:
        found = made["metadata"].get("annotations", {})
        self._left = {name: value for name, value in found.items() if name != _ISSUER}
        self._prefix = prefix

    def take(self, name: str, default: str = "") -> str:
        """The annotation's value; the controller's own default where there is none."""
        return str(self._left.pop(self._prefix + name, default))

    def end(self) -> None:
        """Every annotation has been taken. Raises UntranslatedError."""
        if self._left:
            raise UntranslatedError(f"the translator does not know {sorted(self._left)}")


def rendering(controller: str, *, without: tuple[str, ...] = (), tls: bool = True) -> dict[str, Any]:
    """The objects for a controller, `Kind` -> object.

    without  annotations that its Ingress lacks, by the last part of their names; of an HTTPRoute, its `timeouts`
    tls      whether TLS ends at the ingress
    """
    exposed = f"expose: ingress, ingress: {{class: edge, tls: {str(tls).lower()}, controller: {controller}}}"
    if controller == GATEWAY_API:
        timeouts = "false" if "timeouts" in without else "true"
        exposed = f"expose: gateway, gateway: {{name: edge, timeouts: {timeouts}}}"
    made = objects_of(_CONFIG.format(largest=LARGEST_BODY, host=HOST, exposed=exposed))
    found = {name.partition("/")[0]: each for name, each in made.items()}
    if controller != GATEWAY_API:
        annotations = found["Ingress"]["metadata"]["annotations"]
        gone = [name for name in annotations if name.rpartition("/")[2] in without]
        assert len(gone) == len(without), f"the rendering has not all of {without}"
        for name in gone:
            del annotations[name]
    return found


def has_tls(made: Mapping[str, Any]) -> bool:
    """Whether TLS ends at the ingress."""
    found = made["spec"].get("tls")
    assert found is None or found[0]["hosts"] == [HOST]
    return found is not None


def paths_of(made: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """(path, whether it is a prefix) of each path of an Ingress, all of which lead to the gateway's Service."""
    [rule] = made["spec"]["rules"]
    assert rule["host"] == HOST
    return [(path["path"], path["pathType"] == "Prefix") for path in rule["http"]["paths"]]
