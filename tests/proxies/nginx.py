"""An Ingress as the two controllers with nginx configure it: the community's ingress-nginx, and F5's (nginx-inc).

A subset of their templates, with their defaults where no annotation says otherwise. Sources: kubernetes/ingress-nginx,
rootfs/etc/nginx/template/nginx.tmpl and internal/ingress/controller/config/config.go; nginx/kubernetes-ingress,
internal/configs/version1/nginx.ingress.tmpl and configmaps.md. ingress-nginx balances in Lua, which changes its
endpoints without a reload; here they are servers of an `upstream`, and a reload stands for it. It has `max_fails=0`,
since the Lua does not count failures.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import Any

from aiaas.config.ingress import NGINX, NGINX_INC
from tests.proxies.rendered import HOST, Annotations, Place, has_tls, paths_of

_MAIN = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
{main}
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  tcp_nodelay on;
  server_tokens off;
{http}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream gateways {{
{upstream}
  }}
  server {{ listen 127.0.0.1:{port} default_server; listen 127.0.0.1:{tls} ssl http2 default_server; return 404;
    ssl_certificate {certificate}; ssl_certificate_key {key}; }}
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{tls} ssl http2;
    server_name {host};
    ssl_certificate {certificate};
    ssl_certificate_key {key};
{redirect}
{locations}
  }}
}}
"""
_REDIRECT = "    if ($scheme = http) {{ return {status} https://$host:{port}$request_uri; }}"
_NO_GATEWAY = "    server 127.0.0.1:1 down;"


def ingress_nginx(made: Mapping[str, Any], place: Place) -> str:
    """nginx.conf of ingress-nginx."""
    given = Annotations(made, NGINX)
    assert given.take("backend-protocol", "HTTP") == "HTTP"
    lines = [
        f"client_max_body_size {given.take('proxy-body-size', '1m')};",
        "proxy_set_header Host $http_host;",
        "proxy_set_header Upgrade $http_upgrade;",
        "proxy_set_header Connection $connection_upgrade;",
        "proxy_set_header X-Request-ID $request_id;",
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        "proxy_connect_timeout 5s;",
        f"proxy_send_timeout {given.take('proxy-send-timeout', '60')}s;",
        f"proxy_read_timeout {given.take('proxy-read-timeout', '60')}s;",
        f"proxy_buffering {given.take('proxy-buffering', 'off')};",
        "proxy_buffer_size 4k;",
        "proxy_buffers 4 4k;",
        "proxy_request_buffering on;",
        "proxy_next_upstream error timeout;",
        "proxy_next_upstream_tries 3;",
    ]
    redirect = given.take("ssl-redirect", "true") == "true" and has_tls(made)
    given.end()
    http = [
        "tcp_nopush on;",
        "reset_timedout_connection on;",
        "keepalive_timeout 75s;",
        "keepalive_requests 1000;",
        "client_header_timeout 60s;",
        "client_body_buffer_size 8k;",
        "client_body_timeout 60s;",
        "ssl_protocols TLSv1.2 TLSv1.3;",
        "ssl_buffer_size 4k;",
    ]
    servers = [f"server 127.0.0.1:{port} max_fails=0;" for port in place.gateways]
    pool = ["keepalive 320;", "keepalive_timeout 60s;", "keepalive_requests 10000;"]
    return _config(made, place, "worker_shutdown_timeout 240s;", http, servers, pool, lines, 308 if redirect else None)


def nginx_inc(made: Mapping[str, Any], place: Place) -> str:
    """nginx.conf of F5's controller."""
    given = Annotations(made, NGINX_INC)
    assert given.take("ssl-services") == ""
    lines = [
        f"client_max_body_size {given.take('client-max-body-size', '1m')};",
        "proxy_set_header Host $host;",
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        "proxy_connect_timeout 60s;",
        f"proxy_send_timeout {given.take('proxy-send-timeout', '60s')};",
        f"proxy_read_timeout {given.take('proxy-read-timeout', '60s')};",
        f"proxy_buffering {'on' if given.take('proxy-buffering', 'true') == 'true' else 'off'};",
        "proxy_next_upstream error timeout;",
        "proxy_next_upstream_timeout 0s;",
        "proxy_next_upstream_tries 0;",
    ]
    redirect = given.take("ssl-redirect", "true") == "true" and has_tls(made)
    given.end()
    servers = [f"server 127.0.0.1:{port} max_fails=1 fail_timeout=10s max_conns=0;" for port in place.gateways]
    http, balance = ["keepalive_timeout 75s;"], ["zone gateways 256k;", "random two least_conn;"]
    return _config(made, place, "", http, balance + servers, [], lines, 301 if redirect else None)


def _config(
    made: Mapping[str, Any],
    place: Place,
    main: str,
    http: list[str],
    servers: list[str],
    pool: list[str],
    lines: list[str],
    redirect: int | None,
) -> str:
    inner = "\n".join(f"      {line}" for line in (*lines, "proxy_http_version 1.1;", "proxy_pass http://gateways;"))
    locations = "\n".join(f"    location {path} {{\n{inner}\n    }}" for path in _locations(made))
    upstream = "\n".join(f"    {line}" for line in (*servers, *pool))
    return _MAIN.format(
        # Its workers would otherwise run as a user who cannot read the test's folder.
        user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
        folder=place.folder,
        main=main,
        http="\n".join(f"  {line}" for line in http),
        upstream=upstream if place.gateways else _NO_GATEWAY,
        port=place.http,
        tls=place.https,
        host=HOST,
        certificate=place.certificate,
        key=place.key,
        redirect="" if redirect is None else _REDIRECT.format(status=redirect, port=place.https),
        locations=locations,
    )


def _locations(made: Mapping[str, Any]) -> list[str]:
    """Both controllers make two locations of a prefix, so that `/v1x` is not below `/v1`."""
    found = []
    for path, prefix in paths_of(made):
        found += [f"= {path}", f"{path}/"] if prefix else [f"= {path}"]
    return found
