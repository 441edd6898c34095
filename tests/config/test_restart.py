"""aiaas.config.restart: every field reloads or needs a restart, and a change is never applied in part."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.fields import all_fields
from aiaas.config.load import load_text
from aiaas.config.model import Config
from aiaas.config.restart import RELOADS, RENDERED, RESTARTS, hold_back, with_engines
from aiaas.plan.compile import canonical, compile_plan

ALL = {".".join(path) for path, _ in all_fields()}

A = {"url": "http://a:1", "models": ["m"]}
E = {"engine": {"kind": "simulator"}, "models": ["e"]}
TLS = {"cert_file": "c", "key_file": "k"}
ENV = {"KEY": "k", "OTHER": "o", "SALT": "s" * 32, "SALT2": "t" * 32}
BASE: dict[str, Any] = {"server": {"tls": TLS}, "backends": {"a": A, "e": E}}


def config(data: dict[str, Any]) -> Config:
    """A valid config."""
    loaded = load_text(yaml.safe_dump(data, sort_keys=False), file="f", env=ENV)
    assert loaded.config is not None, loaded.problems
    assert not [p for p in check(loaded, ENV) if p.severity == "error"]
    return loaded.config


def put_in_force(before: dict[str, Any], changed: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The result of `hold_back` for two configs."""
    return hold_back(config(before), config(changed))


def does(one: Config) -> Any:
    """All values of a config, secrets included."""
    plan = compile_plan(one, env=ENV)
    heads = [[sorted(endpoint.heads.items()) for endpoint in backend.endpoints] for backend in plan.backends]
    salts = [backend.cache_secret for backend in plan.backends]
    env = [backend.engine and dict(backend.engine.env) for backend in plan.backends]
    traces = plan.monitoring.traces
    collector = None if traces is None else sorted(traces.collector.heads.items())
    return canonical(plan), heads, salts, env, plan.auth, plan.server.tls, plan.monitoring.usage_file, collector


def kind_of(field: str) -> str | None:
    """The set that has the field, or the nearest section around it."""
    sets = {"reloads": RELOADS, "restarts": RESTARTS, "rendered": RENDERED}
    for end in range(len(parts := field.split(".")), 0, -1):
        found = [name for name, fields in sets.items() if ".".join(parts[:end]) in fields]
        if found:
            assert len(found) == 1, (field, found)
            return found[0]
    return None


# -- the table -----------------------------------------------------------------------------------------------------


def test_every_field_is_in_one_set() -> None:
    """A new field needs a decision; sections whose fields are listed need no entry."""
    sections = {field.rpartition(".")[0] for field in ALL} - {""}
    sections |= {section.removesuffix(".*") for section in sections}
    assert [field for field in sorted(ALL - sections) if kind_of(field) is None] == []
    listed = RELOADS | RESTARTS | RENDERED
    assert sorted(listed - ALL) == []
    assert len(listed) == len(RELOADS) + len(RESTARTS) + len(RENDERED)


# Each field that a gateway uses, changed: the whole section or backend in which it is another one than in FULL.
FULL: dict[str, Any] = {
    "server": {"tls": TLS, "cors": {"allow_origins": ["https://a"]}},
    "rate_limit": {"store": "redis://a"},
    "monitoring": {"traces": {"endpoint": "http://otel:4318", "headers": {"x-scope": "a"}}},
    "backends": {
        "a": {
            "url": "https://a:1",
            "models": [{"name": "m", "max_output_tokens": 9}],
            "api_key_env": "KEY",
            "isolate_cache": "key",
            "isolate_cache_secret_env": "SALT",
        },
        "e": E,
    },
}
OTHER_VALUES: dict[str, Any] = {
    "server.host": "127.0.0.1",
    "server.port": 81,
    "server.workers": 2,
    "server.max_body_size": "1MiB",
    "server.max_upload_size": "1GiB",
    "server.max_connections": 77,
    "server.max_connections_per_address": 7,
    "server.body_total_timeout": "77s",
    "server.resume_memory": "7MiB",
    "server.min_body_rate": "7KiB",
    "server.path_prefix": "/llm",
    "server.max_header_size": "16KiB",
    "server.header_timeout": "3s",
    "server.body_timeout": "3s",
    "server.heartbeat": "3s",
    "server.drain_timeout": "3s",
    "server.trusted_proxies": ["10.0.0.0/8"],
    "server.cors": None,
    "server.cors.allow_origins": ["https://b"],
    "server.tls": None,
    "server.tls.cert_file": "d",
    "server.tls.key_file": "d",
    "server.tls.min_version": "1.3",
    "auth.enabled": False,
    "auth.api_key_prefix": "x-",
    "auth.keys_file": "other.yaml",
    "rate_limit.enabled": False,
    "rate_limit.requests_per_minute": 7,
    "rate_limit.burst": 7,
    "rate_limit.tokens_per_minute": 1007,
    "rate_limit.tokens_per_day": 1007,
    "rate_limit.tokens_per_month": 1007,
    "rate_limit.max_concurrent": 7,
    "rate_limit.cheap_factor": 7,
    "rate_limit.store": "redis://b",
    "rate_limit.on_store_failure": "deny",
    "rate_limit.store_timeout": "7ms",
    "request.media_urls": "allow",
    "request.max_choices": 7,
    "request.fields": {"priority": "pass"},
    "request.fields_by_class.interactive": {"seed": "reject"},
    "request.fields_by_class.default": {"seed": "reject"},
    "request.fields_by_class.batch": {"seed": "reject"},
    "request.unknown_fields": "reject",
    "monitoring.prometheus": False,
    "monitoring.metrics_port": 91,
    "monitoring.admin_port": 92,
    "monitoring.log_level": "debug",
    "monitoring.usage_file": "u",
    "monitoring.traces": None,
    "monitoring.traces.endpoint": "http://other:4318",
    "monitoring.traces.headers": {"x-scope": "b"},
    "monitoring.traces.sample_ratio": 0.5,
    "monitoring.traces.slow_after": "7s",
    "monitoring.traces.slow_ttft": "7s",
    "monitoring.traces.engine_spans": "all",
    "kubernetes.replicas.max": 7,
    "backends.a.enabled": False,
    "backends.a.url": "http://b:1",
    "backends.a.tls.ca_file": "ca.pem",
    "backends.a.tls.server_name": "vllm",
    "backends.a.timeout": "7s",
    "backends.a.total_timeout": "700s",
    "backends.a.connect_timeout": "7s",
    "backends.a.max_retries": 7,
    "backends.a.resume": "near",
    "backends.a.resume_wait": "7s",
    "backends.a.api_key_env": None,
    "backends.a.balance": "round_robin",
    "backends.a.isolate_cache": None,
    "backends.a.isolate_cache_secret_env": "SALT2",
    "backends.a.max_inflight": 7,
    "backends.a.max_pending_prefill": 7,
    "backends.a.fair.output_weight": 7,
    "backends.a.fair.credit": 7,
    "backends.a.fair.reserve": 7,
    "backends.a.scheduling": "priority",
    "backends.a.queue.size": 7,
    "backends.a.queue.max_wait": "7s",
    "backends.a.health.path": "/ping",
    "backends.a.health.interval": "7s",
    "backends.a.health.timeout": "1s",
    "backends.a.health.unhealthy_after": 7,
    "backends.a.health.healthy_after": 7,
    "backends.a.health.silent_after": "7s",
    "backends.a.models": [{"name": "n", "max_output_tokens": 9}],
    "backends.a.models.0.name": "n",
    "backends.a.models.0.aliases": ["x"],
    "backends.a.models.0.max_output_tokens": 7,
    "backends.a.models.0.default_output_tokens": 7,
    "backends.a.models.0.on_over_limit": "clamp",
    "backends.a.endpoints": ["/v1/completions"],
    "backends.a.ask_for_usage": False,
    "backends.a.forward_headers": ["x-a"],
    "backends.e.engine": {"kind": "simulator", "model": "other"},
    "backends.e.engine.kind": "vllm",
    "backends.e.engine.model": "other",
    "backends.e.engine.args": {"ttft": "1s"},
    "backends.e.engine.env": {"A": "b"},
    "backends.e.engine.port": 18001,
    "backends.e.engine.start_timeout": "7s",
}


def changed(field: str, value: object) -> dict[str, Any]:
    """FULL with another value in one field."""
    data: Any = yaml.safe_load(yaml.safe_dump(FULL))
    *parts, last = field.split(".")
    at = data
    for part in parts:
        at = at[int(part)] if part.isdigit() else at.setdefault(part, {})
    at[last] = value
    return dict(data)


def starred(field: str) -> str:
    """The field as the model names it."""
    parts = field.split(".")
    return ".".join(
        "*" if part.isdigit() or (at == 1 and parts[0] == "backends") else part for at, part in enumerate(parts)
    )


def test_every_field_that_is_used_is_tried_below() -> None:
    """But for other kinds of address, which have tests of their own, and sections all of whose fields are tried."""
    tried = {starred(field) for field in OTHER_VALUES}
    used = {field for field in ALL if kind_of(field) in ("reloads", "restarts")}
    sections = {"server", "server.cors", "server.tls", "backends.*.fair", "backends.*.queue", "backends.*.health"}
    sections.add("backends.*.tls")
    rules = {name for name in used if name.startswith("request.fields") and name.endswith(".max")}
    rules.add("request.fields_by_class")
    assert sorted(used - tried - sections - rules) == [
        "backends.*.dns",
        "backends.*.urls",
        "backends.*.urls.*.drain",
        "backends.*.urls.*.url",
    ]


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_each_field_is_put_in_force_or_held(field: str) -> None:
    """Wholly: the config in force does what one of the two configs does, and the log can name the field."""
    new = changed(field, OTHER_VALUES[field])
    assert does(config(new)) != does(config(FULL)), "the value makes no difference"
    result, held = put_in_force(FULL, new)
    if kind_of(starred(field)) == "reloads":
        assert (does(result), held) == (does(config(new)), ())
    else:
        assert does(result) == does(config(FULL))
        assert held == (".".join(field.split(".")[:3]),)


@pytest.mark.parametrize("field", sorted(OTHER_VALUES))
def test_two_changes_are_decided_one_by_one(field: str) -> None:
    """A port needs a restart; whatever else changes with it is as it would be alone."""
    new = changed(field, OTHER_VALUES[field])
    alone, held_alone = put_in_force(FULL, new)
    both, held = put_in_force(FULL, new | {"server": {**new["server"], "port": 99}})
    expected = () if field == "server.port" else held_alone
    assert does(both) == does(alone)
    assert set(held) == {"server.port", *expected}


def test_field_of_manifests_only_changes_nothing() -> None:
    """Neither are these fields held."""
    new = BASE | {"kubernetes": {"replicas": {"min": 3}, "namespace": "x"}}
    new["backends"] = {
        "a": A | {"network": {"port": 7}},
        "e": E | {"engine": {"kind": "simulator", "pod": {"gpus": 2}}},
    }
    result, held = put_in_force(BASE, new)
    assert (does(result), held) == (does(config(BASE)), ())


@pytest.mark.parametrize(("before", "after"), [({}, {"tls": TLS}), ({"tls": TLS}, {})], ids=["added", "removed"])
def test_tls_comes_and_goes_with_a_restart(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Until then TLS is as it was."""
    one = {"server": before, "backends": {"a": A}}
    result, held = put_in_force(one, one | {"server": after})
    assert (does(result), held) == (does(config(one)), ("server.tls",))


def test_a_share_of_a_bound_is_that_of_the_workers_that_run() -> None:
    """Another number of workers does not divide max_inflight until it is in force."""
    one = {"backends": {"a": A | {"max_inflight": 4}}}
    result, held = put_in_force(one, {"server": {"workers": 4}, "backends": {"a": A | {"max_inflight": 8}}})
    assert held == ("server.workers",)
    assert compile_plan(result).backends[0].max_inflight == 8


# -- engines -------------------------------------------------------------------------------------------------------

B = {"url": "http://b:1", "models": ["b"]}
NEW = {"engine": {"kind": "simulator"}, "models": ["new"]}
PORT = {"engine": {"kind": "simulator", "port": 18001}, "models": ["e"]}

# The new backends after {"a": A, "e": E}; the backends in force then; the held fields.
ENGINES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "a backend above": ({"b": B, "a": A, "e": E}, {"b": B, "a": A, "e": E}, []),
    "another order": ({"e": E, "a": A}, {"e": E, "a": A}, []),
    "an engine above": ({"new": NEW, "a": A, "e": E}, {"a": A, "e": E}, ["backends.new.engine"]),
    "an engine above and another timeout": (
        {"new": NEW, "a": A, "e": E | {"timeout": "7s"}},
        {"a": A, "e": E | {"timeout": "7s"}},
        ["backends.new.engine"],
    ),
    "another engine": ({"a": A, "e": PORT}, {"a": A, "e": E}, ["backends.e.engine"]),
    "another engine and another timeout": (
        {"a": A, "e": PORT | {"timeout": "7s"}},
        {"a": A, "e": E | {"timeout": "7s"}},
        ["backends.e.engine"],
    ),
    "another served name": ({"a": A, "e": E | {"models": ["f"]}}, {"a": A, "e": E}, ["backends.e.models"]),
    "another alias": ({"a": A, "e": E | {"models": ["e", "x"]}}, {"a": A, "e": E | {"models": ["e", "x"]}}, []),
    "an address for an engine": (
        {"a": A, "e": B | {"models": ["e"], "timeout": "7s"}},
        {"a": A, "e": E | {"timeout": "7s"}},
        ["backends.e.engine"],
    ),
    "an address and a name for an engine": (
        {"a": A, "e": B | {"models": ["f"]}},
        {"a": A, "e": E},
        ["backends.e.engine", "backends.e.models"],
    ),
    "no engine any more": ({"a": A}, {"a": A, "e": E}, ["backends.e"]),
    "a disabled engine": ({"a": A, "e": E | {"enabled": False}}, {"a": A, "e": E}, ["backends.e.enabled"]),
    "an engine under another name": (
        {"a": A, "new": E},
        {"a": A, "e": E},
        ["backends.new.engine", "backends.e"],
    ),
    "an engine for an address": ({"a": PORT, "e": E}, {"a": A, "e": E}, ["backends.a.engine", "backends.a.models"]),
    "an engine for an address that serves the same": (
        {"a": NEW | {"models": ["m"], "timeout": "7s"}, "e": E},
        {"a": A | {"timeout": "7s"}, "e": E},
        ["backends.a.engine"],
    ),
    "an engine in place of another backend": (
        {"new": NEW, "e": E},
        {"e": E, "a": A},
        ["backends.new.engine", "backends.a"],
    ),
    "an engine in place of a disabled one": (
        {"a": A | {"enabled": False}, "new": NEW, "e": E},
        {"a": A, "e": E},
        ["backends.a.enabled", "backends.new.engine"],
    ),
    "an engine and a backend": (
        {"new": NEW, "a": A, "b": B, "e": E},
        {"a": A, "b": B, "e": E},
        ["backends.new.engine"],
    ),
    "a disabled engine beside": (
        {"a": A, "e": E, "new": NEW | {"enabled": False}},
        {"a": A, "e": E},
        [],
    ),
    "a backend removed": ({"e": E}, {"e": E}, []),
    "a backend disabled": ({"a": A | {"enabled": False}, "e": E}, {"e": E}, []),
    "other addresses": (
        {"a": {"urls": ["http://x:1", "http://y:1"], "models": ["m"]}, "e": E},
        {"a": {"urls": ["http://x:1", "http://y:1"], "models": ["m"]}, "e": E},
        [],
    ),
    "a name": ({"a": {"dns": "x:1", "models": ["m"]}, "e": E}, {"a": {"dns": "x:1", "models": ["m"]}, "e": E}, []),
}


@pytest.mark.parametrize(("after", "in_force", "held"), ENGINES.values(), ids=ENGINES)
def test_a_running_engine_goes_on_answering(after: dict[str, Any], in_force: dict[str, Any], held: list[str]) -> None:
    """At its port, under its name; an engine that does not run yet is not there, and takes nothing away."""
    result, fields = put_in_force({"backends": {"a": A, "e": E}}, {"backends": after})
    assert does(result) == does(config({"backends": in_force}))
    assert list(fields) == held


@pytest.mark.parametrize("kept", [True, False], ids=["stays", "is removed"])
def test_a_disabled_backend_is_not_held_beside_a_waiting_engine(kept: bool) -> None:
    """It took no requests, so nothing replaces it."""
    off = {"off": B | {"enabled": False}}
    result, held = put_in_force(
        {"backends": {"a": A} | off}, {"backends": {"a": A, "new": NEW} | (off if kept else {})}
    )
    assert (does(result), held) == (does(config({"backends": {"a": A}})), ("backends.new.engine",))
    assert ("off" in result.backends) == kept


def test_a_backend_that_was_disabled_waits_for_its_engine() -> None:
    """It is not enabled at its old address, which nobody has asked for."""
    before = {"backends": {"a": A, "new": B | {"enabled": False}}}
    result, held = put_in_force(before, {"backends": {"a": A, "new": NEW}})
    assert (does(result), held) == (does(config({"backends": {"a": A}})), ("backends.new.engine",))


@pytest.mark.parametrize(
    "address",
    [{"url": "http://b:1"}, {"urls": ["http://b:1", "http://c:1"]}, {"dns": "b:1"}],
    ids=["url", "urls", "dns"],
)
def test_an_engine_and_another_address_are_never_mixed(address: dict[str, Any]) -> None:
    """In both directions the backend keeps the address that it had, and has no second one beside it."""
    at, engine = ({"backends": {"e": one | {"models": ["e"]}}} for one in (address, E))
    for before, after in ((at, engine), (engine, at)):
        result, held = put_in_force(before, after)
        assert (result.backends, held) == (config(before).backends, ("backends.e.engine",))


# The new backends after {"a": A, "e": E}; the backends whose engines took their settings; the backends that a gateway
# runs with then.
TAKEN: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "another port and name": ({"e": PORT | {"models": ["f"]}}, ["e"], {"a": A, "e": PORT | {"models": ["f"]}}),
    "another timeout": ({"e": PORT | {"timeout": "7s"}}, ["e"], {"a": A, "e": PORT}),
    "none took anything": ({"e": PORT}, [], {"a": A, "e": E}),
    "a new engine": ({"e": E, "new": NEW}, ["new"], {"a": A, "e": E}),
    "an engine for an address": ({"a": NEW, "e": E}, ["a"], {"a": A, "e": E}),
    "an address for an engine": ({"a": A, "e": B}, ["e"], {"a": A, "e": E}),
    "an engine that is gone": ({"a": A}, ["e"], {"a": A, "e": E}),
}


@pytest.mark.parametrize(("after", "taken", "runs"), TAKEN.values(), ids=TAKEN)
def test_settings_count_once_an_engine_took_them(after: dict[str, Any], taken: list[str], runs: dict[str, Any]) -> None:
    """Its own and its models, and nothing else of its backend; only an engine that runs can take any."""
    before = config({"backends": {"a": A, "e": E}})
    result = with_engines(before, config({"backends": after}), taken)
    assert result == config({"backends": runs})
    assert before == config({"backends": {"a": A, "e": E}})
