"""An Ingress as Traefik reads it, written for its file provider.

Traefik's provider for Ingresses makes the same routers and services of one (pkg/provider/kubernetes/ingress); their
defaults are Traefik's own. The redirect is a setting of its entry point `web`, which the docs ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from aiaas.config.ingress import TRAEFIK
from tests.proxies.rendered import HOST, Annotations, Place, paths_of


def entry_points(place: Place) -> str:
    """traefik.yaml: what Traefik is started with."""
    redirect = {"entryPoint": {"to": f":{place.https}", "scheme": "https"}}
    return yaml.safe_dump(
        {
            "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
            "log": {"level": "ERROR"},
            "entryPoints": {
                "web": {"address": f"127.0.0.1:{place.http}", "http": {"redirections": redirect}},
                "websecure": {"address": f"127.0.0.1:{place.https}"},
            },
            "providers": {"file": {"filename": str(place.folder / "routers.yaml"), "watch": True}},
        }
    )


def routers(made: Mapping[str, Any], place: Place) -> str:
    """routers.yaml: the routers and their service."""
    given = Annotations(made, f"{TRAEFIK}router.")
    points = given.take("entrypoints", "web,websecure").split(",")
    tls = given.take("tls", "false") == "true"
    given.end()
    found = {}
    for number, (path, prefix) in enumerate(paths_of(made)):
        rule = f"Host(`{HOST}`) && {'PathPrefix' if prefix else 'Path'}(`{path}`)"
        found[f"path-{number}"] = {"rule": rule, "entryPoints": points, "service": "gateways"}
        if tls:
            found[f"path-{number}"]["tls"] = {}
    servers = [{"url": f"http://127.0.0.1:{port}"} for port in place.gateways]
    certificates = [{"certFile": str(place.certificate), "keyFile": str(place.key)}]
    return yaml.safe_dump(
        {
            "http": {
                "routers": found,
                "services": {"gateways": {"loadBalancer": {"servers": servers, "passHostHeader": True}}},
            },
            "tls": {"certificates": certificates},
        }
    )
