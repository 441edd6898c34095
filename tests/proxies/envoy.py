"""An HTTPRoute as Envoy Gateway configures Envoy, with files in place of its xDS server.

Source: envoyproxy/gateway, internal/xds/translator/route.go, listener.go and cluster.go: the route's timeout is
Envoy's, 0 also turns Envoy's idle timeout of a stream (5 minutes) off, and without one Envoy's own 15 s hold. The
listener for plain HTTP redirects, as the docs ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tests.proxies.rendered import HOST, Place, UntranslatedError

_TYPES = "type.googleapis.com/envoy"
_MANAGER = f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_TYPES}.extensions.filters.http.router.v3.Router"
_TLS = f"{_TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_ENDPOINTS = f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment"
_BUFFER = 32_768  # bytes; Envoy Gateway's default


def bootstrap(made: Mapping[str, Any], place: Place) -> str:
    """envoy.yaml: listeners, routes, and a cluster whose endpoints are in a file."""
    endpoints = {"path": str(place.folder / "endpoints.yaml"), "watched_directory": {"path": str(place.folder)}}
    cluster = {
        "name": "gateways",
        "type": "EDS",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": _BUFFER,
        "ignore_health_on_host_removal": True,
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "path_config_source": endpoints}},
    }
    redirect = {"match": {"prefix": "/"}, "redirect": {"https_redirect": True, "port_redirect": place.https}}
    listeners = [
        _listener("http", place.http, [redirect]),
        _listener("https", place.https, _routes(made), tls=place),
    ]
    node = {"id": "test", "cluster": "test"}
    return yaml.safe_dump({"node": node, "static_resources": {"listeners": listeners, "clusters": [cluster]}})


def endpoints(place: Place) -> str:
    """endpoints.yaml."""
    found = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in place.gateways
    ]
    made = {"@type": _ENDPOINTS, "cluster_name": "gateways", "endpoints": [{"lb_endpoints": found}]}
    return yaml.safe_dump({"resources": [made]})


def _routes(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    spec = made["spec"]
    assert spec["hostnames"] == [HOST]
    [rule] = spec["rules"]
    unknown = set(rule) - {"matches", "backendRefs", "timeouts"} | set(spec) - {"parentRefs", "hostnames", "rules"}
    timeouts = dict(rule.get("timeouts", {}))
    action: dict[str, Any] = {"cluster": "gateways"}
    if "request" in timeouts:
        action["timeout"] = action["idle_timeout"] = timeouts.pop("request")
        assert action["timeout"] == "0s", "with a bound, Envoy Gateway has an idle timeout of at least an hour"
        # Envoy Gateway takes the bound of the whole request; the one of an attempt is the same.
        assert timeouts.pop("backendRequest") == action["timeout"]
    unknown |= set(timeouts)
    if unknown:
        raise UntranslatedError(f"the translator does not know {sorted(unknown)}")
    return [{"match": _match(each["path"]), "route": action} for each in rule["matches"]]


def _match(path: Mapping[str, str]) -> dict[str, str]:
    return {"path_separated_prefix" if path["type"] == "PathPrefix" else "path": path["value"]}


def _listener(name: str, port: int, routes: list[dict[str, Any]], tls: Place | None = None) -> dict[str, Any]:
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}
    hosts = {"name": name, "domains": [HOST, f"{HOST}:*"], "routes": routes}
    manager = {
        "@type": _MANAGER,
        "stat_prefix": name,
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "route_config": {"virtual_hosts": [hosts]},
        "http_filters": [router],
    }
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    if tls is not None:
        pair = {"certificate_chain": {"filename": str(tls.certificate)}, "private_key": {"filename": str(tls.key)}}
        common = {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]}
        context = {"@type": _TLS, "common_tls_context": common}
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "per_connection_buffer_limit_bytes": _BUFFER,
        "filter_chains": [chain],
    }
