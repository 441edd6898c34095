"""The deployed form of a config: what the ConfigMap holds, and the Plan that the pods run from it.

It is the config as written (`${NAME}` stays, the shell's overrides do not count, comments go) with these changes:

  1. `kubernetes` keeps `replicas` only, where it has them or a shared store needs them: they are what a gateway divides
     a limit by while it has not yet been able to count the others in the store. The rest is no business of a pod, and a
     changed annotation must not roll it.
  2. `auth.keys_file` and the files of `server.tls` are where the manifests mount them, `monitoring.usage_file` where
     they give it a volume.
  3. A backend with an engine of kind `vllm` has the `url` of that engine's Service instead: the engine runs in a pod of
     its own. A simulator stays: it is a process beside the gateway.

So the Plan of a config without vLLM engines is the Plan of its deployed form but for where files lie, with the same
digest; and for every config the ConfigMap, loaded and compiled, is the Plan that it was rendered from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from aiaas.config.environment import names_in
from aiaas.config.model import Config

CONFIG_FOLDER: Final = "/etc/aiaas/config"
CONFIG_KEY: Final = "config.yaml"  # as in the plan's ConfigMap
CONFIG_FILE: Final = Path(CONFIG_FOLDER, CONFIG_KEY)
KEYS_FOLDER: Final = "/etc/aiaas/keys"
KEYS_KEY: Final = "keys.yaml"
TLS_FOLDER: Final = "/etc/aiaas/tls"
TLS_CERT, TLS_KEY = "tls.crt", "tls.key"  # the entries of a Secret of type kubernetes.io/tls
DATA_FOLDER: Final = "/var/lib/aiaas"
USAGE_FILE: Final = "usage.sqlite"

ENGINE_PORT: Final = 8000  # vLLM's own default


def deployed_form(written: dict[str, Any], config: Config, engine_urls: dict[str, str]) -> dict[str, Any]:
    """The deployed form of a config as plain data, in the order in which it was written.

    written      the fields as they stand in the file (`aiaas.config.load.Loaded.written`)
    engine_urls  backend -> the address of its engine's Service, for each backend with an engine of kind vllm
    """
    form = {name: section for name, section in written.items() if name != "kubernetes"}
    kubernetes = written.get("kubernetes") or {}
    if "replicas" in kubernetes:
        form["kubernetes"] = {"replicas": kubernetes["replicas"]}
    elif "kubernetes" in written and config.rate_limit.store != "memory":
        form["kubernetes"] = {"replicas": {"max": config.kubernetes.replicas.max}}
    form["backends"] = {
        name: _with_url(backend, engine_urls[name]) if name in engine_urls else backend
        for name, backend in written["backends"].items()
    }
    if config.auth.enabled:
        form["auth"] = (form.get("auth") or {}) | {"keys_file": f"{KEYS_FOLDER}/{KEYS_KEY}"}
    if config.server.tls is not None:
        mounted = {"cert_file": f"{TLS_FOLDER}/{TLS_CERT}", "key_file": f"{TLS_FOLDER}/{TLS_KEY}"}
        form["server"] = form["server"] | {"tls": form["server"]["tls"] | mounted}
    if config.monitoring.usage_file is not None:
        form["monitoring"] = form["monitoring"] | {"usage_file": f"{DATA_FOLDER}/{USAGE_FILE}"}
    return form


def literal_names(written: Any) -> frozenset[str]:
    """The NAMEs whose `${NAME}` is deployed as it stands, so that no value is needed where the config is rendered.

    What becomes a field of a manifest has to have its value then: the `kubernetes` section (`image: x:${TAG}`), and of
    an engine of kind vllm all but its environment. `written` is a file as it was read: anything.
    """
    sections = dict(written) if isinstance(written, dict) else {}
    backends = sections.pop("backends", None)
    rendered = [sections.pop("kubernetes", None)]
    literal: list[Any] = list(sections.values())
    for backend in backends.values() if isinstance(backends, dict) else ():
        fields = dict(backend) if isinstance(backend, dict) else {}
        engine = fields.get("engine")
        if isinstance(engine, dict) and engine.get("kind") == "vllm":
            del fields["engine"]
            rendered.append({name: value for name, value in engine.items() if name != "env"})
            literal.append(engine.get("env"))
        literal.append(fields)
        if isinstance(key := fields.get("api_key_env"), str):
            literal.append(f"${{{key}}}")
    return names_in(literal) - names_in(rendered)


def _with_url(backend: dict[str, Any], url: str) -> dict[str, Any]:
    """The backend with `url` where `engine` stands."""
    return {
        ("url" if field == "engine" else field): (url if field == "engine" else backend[field]) for field in backend
    }
