"""The deployed form of a config: the content of the ConfigMap, from which the pods compile their Plan.

It is the config as written (`${NAME}` stays, the shell's overrides are ignored, comments are dropped) with these
changes:

  1. `kubernetes` keeps `replicas.max` only, and only for a shared store: a gateway divides a limit by it until it has
     counted the other gateways in the store (`assumed_replicas`). A pod does not need the other fields, and a changed
     annotation must not roll the pods. Nor do they need `accept`.
  2. `auth.keys_file` and the files of `server.tls` point to the folders where the manifests mount them,
     `monitoring.usage_file` to its volume. A file of authorities (`backends.X.tls.ca_file`, `ssl_ca_certs` of a store)
     is the entry of its name in `kubernetes.authorities`; an absolute path stays, as a file of the image.
  3. A backend with an engine of kind `vllm` has the `url` of that engine's Service instead, since the engine runs in a
     pod of its own. A simulator stays, since it is a process beside the gateway.

So a config without vLLM engines and its deployed form have equal Plans except for paths of files, and the same digest.
For every config, the ConfigMap loads and compiles to the Plan from which it was rendered.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from aiaas.config.model import Config
from aiaas.plan.compile import assumed_replicas

CONFIG_FOLDER: Final = "/etc/aiaas/config"
CONFIG_KEY: Final = "config.yaml"  # as in the plan's ConfigMap
CONFIG_FILE: Final = Path(CONFIG_FOLDER, CONFIG_KEY)
KEYS_FOLDER: Final = "/etc/aiaas/keys"
KEYS_KEY: Final = "keys.yaml"
TLS_FOLDER: Final = "/etc/aiaas/tls"
TLS_CERT, TLS_KEY = "tls.crt", "tls.key"  # the entries of a Secret of type kubernetes.io/tls
AUTHORITIES_FOLDER: Final = "/etc/aiaas/authorities"
DATA_FOLDER: Final = "/var/lib/aiaas"
USAGE_FILE: Final = "usage.sqlite"

_STORES_WITH_TLS: Final = ("rediss", "valkeys")
_STORE_CA: Final = re.compile(r"([?&]ssl_ca_certs=)([^&]*)")
ENGINE_PORT: Final = 8000  # vLLM's own default


def deployed_form(written: dict[str, Any], config: Config, engine_urls: dict[str, str]) -> dict[str, Any]:
    """The deployed form of a config as plain data, in the file's order.

    written      the fields as written in the file (`aiaas.config.load.Loaded.written`)
    engine_urls  backend -> the address of its engine's Service, for each backend with an engine of kind vllm
    """
    form = {name: section for name, section in written.items() if name not in ("kubernetes", "accept")}
    if "kubernetes" in written and config.rate_limit.store != "memory":
        form["kubernetes"] = {"replicas": {"max": assumed_replicas(config)}}
    form["backends"] = {
        name: _with_url(backend, engine_urls[name]) if name in engine_urls else _with_authorities(backend)
        for name, backend in written["backends"].items()
    }
    if config.rate_limit.store.startswith(_STORES_WITH_TLS):
        form["rate_limit"] = form["rate_limit"] | {"store": _STORE_CA.sub(_mounted_match, form["rate_limit"]["store"])}
    if config.auth.enabled:
        form["auth"] = (form.get("auth") or {}) | {"keys_file": f"{KEYS_FOLDER}/{KEYS_KEY}"}
    if config.server.tls is not None:
        mounted = {"cert_file": f"{TLS_FOLDER}/{TLS_CERT}", "key_file": f"{TLS_FOLDER}/{TLS_KEY}"}
        form["server"] = form["server"] | {"tls": form["server"]["tls"] | mounted}
    if config.monitoring.usage_file is not None:
        form["monitoring"] = form["monitoring"] | {"usage_file": f"{DATA_FOLDER}/{USAGE_FILE}"}
    return form


def authorities_entry(ca_file: str) -> str | None:
    """The entry of `kubernetes.authorities` that a file of the config is in the pod; None for a file of the image, and
    for a path with a variable, whose value in the cluster is the path in the pod."""
    return None if Path(ca_file).is_absolute() or "${" in ca_file else Path(ca_file).name


def _mounted(ca_file: str) -> str:
    entry = authorities_entry(ca_file)
    return ca_file if entry is None else f"{AUTHORITIES_FOLDER}/{entry}"


def _mounted_match(match: re.Match[str]) -> str:
    return match[1] + _mounted(match[2])


def _with_authorities(backend: dict[str, Any]) -> dict[str, Any]:
    tls = backend.get("tls") or {}
    return backend | {"tls": tls | {"ca_file": _mounted(tls["ca_file"])}} if tls.get("ca_file") else backend


def _with_url(backend: dict[str, Any], url: str) -> dict[str, Any]:
    """The backend with `url` in place of `engine`."""
    return {
        ("url" if field == "engine" else field): (url if field == "engine" else backend[field]) for field in backend
    }
