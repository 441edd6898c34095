"""Which fields of a config a running gateway puts in force, and which wait for a restart.

Every field is in one of three sets. An entry also covers the fields inside it that have no entry of their own. Sockets,
processes and stores need a restart: they are opened once, at the start.

`hold_back` keeps the old value of each field that needs a restart, and puts the rest of the changed config in force.
For engines that means:

- A running engine goes on answering even if its backend gets another engine or another kind of address, is disabled or
  is removed. The backend's other settings are the new ones, except `models` if the engine would have to serve another
  name.
- An engine that is not healthy takes changed settings at once (`with_engines`): the change may fix it.
- A new backend with an engine waits for the restart: it is left out, or keeps its old address. While a backend waits,
  other backends are not removed: the new backend may be meant to replace one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from aiaas.config.backend import Backend
from aiaas.config.model import Config
from aiaas.config.section import Section

RESTARTS: Final = frozenset(
    {
        "server.host",
        "server.port",
        "server.workers",
        "server.path_prefix",
        "server.max_header_size",
        "server.header_timeout",
        "server.tls",  # turning TLS on or off; changes of its files and versions are put in force
        "rate_limit.store",
        "monitoring.prometheus",
        "monitoring.metrics_port",
        "monitoring.admin_port",
        "monitoring.usage_file",
        "backends.*.engine",
    }
)
RELOADS: Final = frozenset(
    {
        "server.max_body_size",
        "server.max_upload_size",
        "server.max_connections",
        "server.max_connections_per_address",
        "server.body_total_timeout",
        "server.min_body_rate",
        "server.body_timeout",
        "server.heartbeat",
        "server.resume_memory",
        "server.drain_timeout",
        "server.trusted_proxies",
        "server.cors",
        "server.tls.cert_file",
        "server.tls.key_file",
        "server.tls.min_version",
        "auth.enabled",
        "auth.api_key_prefix",
        "auth.keys_file",
        "rate_limit.enabled",
        "rate_limit.requests_per_minute",
        "rate_limit.burst",
        "rate_limit.tokens_per_minute",
        "rate_limit.tokens_per_day",
        "rate_limit.tokens_per_month",
        "rate_limit.max_concurrent",
        "rate_limit.cheap_factor",
        "rate_limit.on_store_failure",
        "rate_limit.store_timeout",
        "request.media_urls",
        "request.max_choices",
        "request.fields",
        "request.fields_by_class.interactive",
        "request.fields_by_class.default",
        "request.fields_by_class.batch",
        "request.unknown_fields",
        "monitoring.log_level",
        "monitoring.traces",
        "backends.*.enabled",
        "backends.*.url",
        "backends.*.urls",
        "backends.*.dns",
        "backends.*.tls",
        "backends.*.timeout",
        "backends.*.total_timeout",
        "backends.*.connect_timeout",
        "backends.*.max_retries",
        "backends.*.resume",
        "backends.*.resume_wait",
        "backends.*.api_key_env",
        "backends.*.isolate_cache",
        "backends.*.isolate_cache_secret_env",
        "backends.*.balance",
        "backends.*.max_inflight",
        "backends.*.max_pending_prefill",
        "backends.*.fair",
        "backends.*.scheduling",
        "backends.*.queue",
        "backends.*.health",
        "backends.*.models",
        "backends.*.endpoints",
        "backends.*.ask_for_usage",
        "backends.*.forward_headers",
        "kubernetes.replicas.max",  # while the store is away, each limit is divided by this number
    }
)
# The gateway does not use these fields.
RENDERED: Final = frozenset(
    {
        "version",
        "kubernetes",
        "accept",
        "backends.*.engine.pod",
        "backends.*.network",
        "monitoring.slo",
        "monitoring.runbook_url",
    }
)

_ADDRESS: Final = ("url", "urls", "dns", "engine")


def hold_back(before: Config, changed: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the config that a gateway running with `before` puts in force when the file becomes `changed`, and the
    fields that wait for a restart."""
    sections: dict[str, Section | dict[str, Backend]] = {}
    held: list[str] = []
    for section in ("server", "rate_limit", "monitoring"):
        sections[section], fields = _section(section, getattr(before, section), getattr(changed, section))
        held += fields
    sections["backends"], fields = _backends(before.backends, changed.backends)
    return changed.model_copy(update=sections), (*held, *fields)


def with_engines(before: Config, changed: Config, taken: Iterable[str]) -> Config:
    """Return `before` with the engine settings of the backends `taken` from `changed`."""
    backends = dict(before.backends)
    for name in taken:
        old, new = backends.get(name), changed.backends.get(name)
        if old is not None and new is not None and _runs(old) and _runs(new):
            backends[name] = old.model_copy(update={"engine": new.engine, "models": new.models})
    return before.model_copy(update={"backends": backends})


def _section(section: str, before: Section, changed: Section) -> tuple[Section, list[str]]:
    names = [name for name in type(before).model_fields if f"{section}.{name}" in RESTARTS]
    kept = {name: getattr(before, name) for name in names if _differs(getattr(before, name), getattr(changed, name))}
    return changed.model_copy(update=kept), [f"{section}.{name}" for name in kept]


def _differs(before: object, changed: object) -> bool:
    """Return whether a field changed in a way that needs a restart: for a section, if it was added or removed."""
    return before != changed and not (isinstance(before, Section) and isinstance(changed, Section))


def _backends(before: Mapping[str, Backend], changed: Mapping[str, Backend]) -> tuple[dict[str, Backend], list[str]]:
    result: dict[str, Backend] = {}
    held: list[str] = []
    waiting = [name for name, backend in changed.items() if _runs(backend) and not _runs(before.get(name))]
    for name, backend in changed.items():
        old = before.get(name)
        if old is not None and old.enabled and (_runs(old) or name in waiting):
            result[name], fields = _with_address_of(old, backend)
            held += [f"backends.{name}.{field}" for field in fields]
        elif name in waiting:
            held.append(f"backends.{name}.engine")
        elif waiting and old is not None and old.enabled and not backend.enabled:
            result[name] = old
            held.append(f"backends.{name}.enabled")
        else:
            result[name] = backend
    for name, old in before.items():
        if name not in changed and (_runs(old) or (waiting and old.enabled)):
            result[name] = old
            held.append(f"backends.{name}")
    return result, held


def _runs(backend: Backend | None) -> bool:
    """Return whether the backend has an engine that starts with the gateway."""
    return backend is not None and backend.enabled and backend.engine is not None


def _with_address_of(old: Backend, changed: Backend) -> tuple[Backend, list[str]]:
    """Return `changed` with the address of `old`, and with the models of `old` if the served names changed; then the
    fields that keep their old value. At least one of the two backends has an engine."""
    kept: dict[str, object] = {}
    held = []
    if _engine(old) != _engine(changed):
        kept |= {name: getattr(old, name) for name in _ADDRESS}
        held.append("engine")
    if not changed.enabled:
        kept["enabled"] = True
        held.append("enabled")
    if [model.name for model in old.served()] != [model.name for model in changed.served()]:
        kept["models"] = old.models
        held.append("models")
    return changed.model_copy(update=kept), held


def _engine(backend: Backend) -> Mapping[str, object] | None:
    """Return the engine's settings that a gateway uses; None without an engine."""
    return None if backend.engine is None else backend.engine.model_dump(exclude={"pod"})
