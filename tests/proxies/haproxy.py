"""An Ingress as the controllers with HAProxy configure it: haproxytech's, haproxy-ingress, OpenShift's router.

A subset of their templates, with their defaults where no annotation says otherwise. Sources: haproxytech/
kubernetes-ingress, documentation/README.md and fs/usr/local/etc/haproxy/haproxy.cfg; jcmoraisjr/haproxy-ingress,
rootfs/etc/templates/haproxy/haproxy.tmpl and docs/configuration/keys; openshift/router,
images/router/haproxy/conf/haproxy-config.template. haproxy-ingress refuses large bodies in Lua; here a `deny` with the
same status stands for it. OpenShift's router passes TLS through a second, inner HAProxy frontend, left out here.

The notes of `aiaas render` ask the operator for `option abortonclose` in `defaults` (`Place.noted`): an annotation of
an Ingress reaches the backend at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiaas.config.ingress import HAPROXY, HAPROXY_INGRESS, OPENSHIFT, bytes_of
from tests.proxies.rendered import HOST, Annotations, Place, has_tls, paths_of

_CONFIG = """\
global
  hard-stop-after 30m
  stats socket {folder}/haproxy.sock level admin expose-fd listeners
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  option redispatch
  option dontlognull
{defaults}
frontend http
  bind 127.0.0.1:{port}
{redirect}
{routes}
  default_backend nothing
frontend https
  bind 127.0.0.1:{tls} ssl crt {certificate} alpn h2,http/1.1
{routes}
  default_backend nothing
backend nothing
  http-request deny deny_status 404
backend gateways
  option forwardfor
{backend}
{servers}
"""


def haproxytech(made: Mapping[str, Any], place: Place) -> str:
    """haproxy.cfg of haproxytech's controller."""
    given = Annotations(made, HAPROXY)
    assert given.take("server-ssl", "false") == "false"
    redirect = given.take("ssl-redirect", "true") == "true" and has_tls(made)
    backend = ["balance roundrobin", f"timeout server {given.take('timeout-server', '50s')}"]
    backend += given.take("backend-config-snippet").splitlines()
    backend += ["option abortonclose"] if given.take("abortonclose") == "true" else []
    given.end()
    defaults = [
        "option http-keep-alive",
        "timeout http-request 5s",
        "timeout connect 5s",
        "timeout client 50s",
        "timeout queue 5s",
        "timeout server 50s",
        "timeout tunnel 1h",
        "timeout http-keep-alive 1m",
    ]
    return _config(made, place, [*defaults, *_noted(place)], backend, "check", redirect=redirect)


def haproxy_ingress(made: Mapping[str, Any], place: Place) -> str:
    """haproxy.cfg of haproxy-ingress."""
    given = Annotations(made, HAPROXY_INGRESS)
    assert given.take("backend-protocol", "h1") == "h1"
    redirect = given.take("ssl-redirect", "true") == "true" and has_tls(made)
    backend = ["balance roundrobin", f"timeout server {given.take('timeout-server', '50s')}"]
    largest = bytes_of(given.take("proxy-body-size", "0"))
    assert largest is not None
    if largest:
        backend.append(f"http-request deny deny_status 413 if {{ req.body_size,sub({largest}) gt 0 }}")
    backend += given.take("config-backend").splitlines()
    given.end()
    defaults = [
        "option http-server-close",
        "option http-keep-alive",
        "timeout client 50s",
        "timeout connect 5s",
        "timeout http-keep-alive 1m",
        "timeout http-request 5s",
        "timeout queue 5s",
        "timeout server 50s",
        "timeout tunnel 1h",
    ]
    return _config(made, place, [*defaults, *_noted(place)], backend, "check inter 2s", redirect=redirect)


def openshift(made: Mapping[str, Any], place: Place) -> str:
    """haproxy.config of OpenShift's router."""
    given = Annotations(made, OPENSHIFT)
    backend = ["balance random", f"timeout server {given.take('timeout', '30s')}", "timeout check 5000ms"]
    assert given.take("disable_cookies", "false") == "true", "the translator knows no cookies"
    given.end()
    defaults = [
        "timeout connect 5s",
        "timeout client 30s",
        "timeout client-fin 1s",
        "timeout server 30s",
        "timeout server-fin 1s",
        "timeout http-request 10s",
        "timeout http-keep-alive 300s",
        "timeout tunnel 1h",
    ]
    return _config(made, place, [*defaults, *_noted(place)], backend, "check inter 5000ms", redirect=has_tls(made))


def _noted(place: Place) -> list[str]:
    return ["option abortonclose"] if place.noted else []


def _config(
    made: Mapping[str, Any], place: Place, defaults: list[str], backend: list[str], server: str, *, redirect: bool
) -> str:
    # HAProxy looks for the key beside the certificate.
    assert place.key.name == f"{place.certificate.name}.key"
    return _CONFIG.format(
        folder=place.folder,
        port=place.http,
        tls=place.https,
        certificate=place.certificate,
        defaults=_lines(defaults),
        redirect=_lines(["http-request redirect scheme https"] if redirect else []),
        routes=_lines(_routes(made)),
        backend=_lines(backend),
        servers=_lines([f"server gateway-{port} 127.0.0.1:{port} {server}" for port in place.gateways]),
    )


def _routes(made: Mapping[str, Any]) -> list[str]:
    found = []
    for path, prefix in paths_of(made):
        found.append(f"use_backend gateways if {{ req.hdr(host),field(1,:) {HOST} }} {{ path {path} }}")
        if prefix:
            found.append(f"use_backend gateways if {{ req.hdr(host),field(1,:) {HOST} }} {{ path_beg {path}/ }}")
    return found


def _lines(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
