"""Config -> Plan: every decision taken before the first request."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.config.check import check
from aiaas.config.load import load_text
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.openai.paths import GENERATE
from aiaas.plan.compile import canonical, compile_plan
from aiaas.plan.model import Plan

MINIMAL = "backends:\n  vllm:\n    url: http://vllm:8000\n    models: [m, alias]\n"


def plan_of(text: str, env: dict[str, str] | None = None, source: Path | None = None) -> Plan:
    """Load, check and compile; an error fails the test."""
    loaded = load_text(text, file="f", env=env or {})
    errors = [str(problem) for problem in loaded.problems + check(loaded, env or {}) if problem.severity == "error"]
    assert errors == []
    assert loaded.config is not None
    return compile_plan(loaded.config, source=source, overrides=loaded.overrides, env=env or {})


def test_a_head_is_complete_but_for_the_requests_own_headers() -> None:
    """Start line with base path, Host with brackets for IPv6, identity encoding, and the backend's own key."""
    text = "backends:\n  v:\n    url: http://[::1]:8000/base/\n    models: [m]\n    api_key_env: KEY\n"
    endpoint = plan_of(text, {"KEY": "abc"}).backends[0].endpoints[0]
    assert endpoint.heads["/v1/chat/completions"] == (
        b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: [::1]:8000\r\n"
        b"Accept-Encoding: identity\r\nAuthorization: Bearer abc\r\n"
    )
    assert endpoint.heads["/health"].startswith(b"GET /base/health HTTP/1.1\r\n")
    assert endpoint.heads["/v1/models"].startswith(b"GET /base/v1/models HTTP/1.1\r\n")
    assert endpoint.heads["/v1/embeddings"].startswith(b"POST /base/v1/embeddings HTTP/1.1\r\n")  # though not served
    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.base_path) == ("::1", 8000, False, "/base")
    without = plan_of(MINIMAL).backends[0].endpoints[0]
    assert b"authorization" not in b"".join(without.heads.values()).lower()


def test_no_repr_shows_a_secret() -> None:
    """Neither the backend's key nor an engine's environment is in the Plan's repr."""
    text = """
backends:
  a: {url: "http://a", models: [a], api_key_env: KEY}
  b: {engine: {kind: vllm, env: {HF_TOKEN: "${TOKEN}"}}, models: [b]}
"""
    assert "hunter" not in repr(plan_of(text, {"KEY": "hunter1", "TOKEN": "hunter2"}))


def test_a_stores_password_is_for_the_store_only() -> None:
    """The Plan's repr, its digest and its canonical form omit it; a comparison of two Plans counts it."""
    text = (
        MINIMAL
        + """
rate_limit: {store: "rediss+sentinel://:${PASSWORD}@s:7000/n/2?ssl_ca_certs=ca.pem&sentinel_password=${PASSWORD}"}
"""
    )
    plan = plan_of(text, {"PASSWORD": "hunter1"}, source=Path("conf/aiaas.yaml"))
    limits = plan.limits
    assert limits.store == "rediss+sentinel://s:7000/n/2"
    assert limits.store_url is not None
    assert (limits.store_url.password, limits.store_url.ca_file) == ("hunter1", Path("conf/ca.pem"))
    assert limits.store_url.sentinel_password == "hunter1"
    assert "hunter" not in repr(plan)
    assert "hunter" not in repr(canonical(plan))
    other = plan_of(text, {"PASSWORD": "hunter2"}, source=Path("conf/aiaas.yaml"))
    assert other.digest == plan.digest
    assert other != plan


@pytest.mark.parametrize(
    ("text", "processes"),
    [
        pytest.param("", 1, id="one process"),
        pytest.param("server: {workers: 4}", 4, id="workers"),
        pytest.param("kubernetes: {}", 16, id="replicas, by default 10"),
        pytest.param("kubernetes: {replicas: {min: 1, max: 3}}\nserver: {workers: 2}", 8, id="workers of replicas"),
    ],
)
def test_processes_are_workers_and_replicas_in_a_cluster(text: str, processes: int) -> None:
    """Replicas count as the next power of two; without a `kubernetes` section their number is unknown, so 1."""
    limits = plan_of(f"{MINIMAL}\nrate_limit: {{store: 'redis://r', store_timeout: 100ms}}\n{text}\n").limits
    assert (limits.processes, limits.store_timeout) == (processes, 0.1)


def test_a_stores_files_lie_beside_the_config() -> None:
    """Its own certificate and key too, and the mode for its absence is in the Plan."""
    text = MINIMAL + "rate_limit: {store: 'rediss://r?ssl_certfile=a.crt&ssl_keyfile=a.key', on_store_failure: deny}\n"
    limits = plan_of(text, source=Path("conf/aiaas.yaml")).limits
    assert limits.store_url is not None
    assert (limits.store_url.cert_file, limits.store_url.key_file) == (Path("conf/a.crt"), Path("conf/a.key"))
    assert (limits.enabled, limits.on_store_failure) == (True, "deny")
    memory = plan_of(MINIMAL + "rate_limit: {on_store_failure: deny}\n").limits
    assert (memory.store, memory.on_store_failure) == ("memory", "deny")


def test_settings_of_the_config_are_in_the_plan() -> None:
    """Headers to forward in small letters, the path of the probe, the workers, and the overrides' names."""
    text = f"server: {{workers: 3}}\n{MINIMAL}    forward_headers: [X-Team]\n    health: {{path: /ping}}\n"
    text += "    ask_for_usage: false\n"
    plan = plan_of(text, {"VLLM_TIMEOUT": "7s"})
    (backend,) = plan.backends
    assert (backend.forward_headers, backend.health.path) == (("x-team",), "/ping")
    assert not backend.ask_for_usage
    assert (plan.server.workers, len(plan.overrides)) == (3, 1)


def test_several_urls_are_several_endpoints() -> None:
    """Each address of `urls` becomes an endpoint, in order."""
    text = "backends:\n  v: {urls: ['http://a:1', 'https://b'], models: [m]}\n"
    assert [endpoint.url for endpoint in plan_of(text).backends[0].endpoints] == ["http://a:1", "https://b"]


@pytest.mark.parametrize(
    ("workers", "bound", "size", "shares"),
    [
        pytest.param(1, 10, 100, (10, 100), id="alone"),
        pytest.param(4, 10, 100, (2, 25), id="never more together than is allowed"),
        pytest.param(4, 2, 3, (1, 1), id="at least one each"),
        pytest.param(4, "null", 0, (None, 0), id="no bound, no queue"),
    ],
)
def test_workers_share_what_is_bounded_for_each_endpoint(
    workers: int, bound: object, size: int, shares: tuple[int | None, int]
) -> None:
    """The Plan has the limit of one worker."""
    text = f"server: {{workers: {workers}}}\n{MINIMAL}    max_inflight: {bound}\n    queue: {{size: {size}}}\n"
    plan = plan_of(text)
    (backend,) = plan.backends
    assert (backend.max_inflight, backend.queue.size) == shares
    assert plan.server.max_connections == 2048 // workers


def test_an_alias_is_rewritten_and_the_served_name_is_not() -> None:
    """`rewrite` is the JSON text of the served name for an alias, and None for that name itself."""
    text = """
backends:
  v:
    url: http://v
    models: [{name: 'qüo"te', aliases: [short]}]
"""
    routes = plan_of(text).routes["/v1/completions"]
    assert routes["short"].targets[0].rewrite == b'"q\\u00fco\\"te"'
    assert routes['qüo"te'].targets[0].rewrite is None


def test_routes_are_what_enabled_backends_name() -> None:
    """A path that no enabled backend names is absent, and so is a model of a disabled one."""
    text = MINIMAL.rstrip() + "\n    endpoints: [/v1/chat/completions, /v1/completions]\n"
    text += "  off: {enabled: false, url: 'http://x', models: [x], endpoints: [/tokenize]}\n"
    plan = plan_of(text)
    assert set(plan.routes) == {"/v1/chat/completions", "/v1/completions"}
    assert set(plan.routes["/v1/completions"]) == {"m", "alias"}
    assert [backend.name for backend in plan.backends] == ["vllm"]


def test_a_shared_name_is_a_fallback_in_the_files_order() -> None:
    """Two backends with one public name give one route with two targets, each with its own rewrite."""
    text = """
backends:
  one: {url: "http://one", models: [m]}
  two: {url: "http://two", models: [other, m], endpoints: [/v1/completions]}
"""
    plan = plan_of(text)
    targets = plan.routes["/v1/completions"]["m"].targets
    assert [(target.backend.name, target.rewrite) for target in targets] == [("one", None), ("two", b'"other"')]
    assert len(plan.routes["/v1/chat/completions"]["m"].targets) == 1


def test_models_are_listed_of_backends_that_name_the_path() -> None:
    """GET /v1/models lists names and aliases in order, of those backends that offer that path."""
    text = MINIMAL + "  hidden: {url: 'http://h', models: [h], endpoints: [/v1/completions]}\n"
    plan = plan_of(text)
    assert plan.serves_models
    assert [(model.name, model.alias_of) for model in plan.models] == [("m", None), ("alias", "m")]
    without = plan_of("backends:\n  h: {url: 'http://h', models: [h], endpoints: [/v1/completions]}\n")
    assert (without.serves_models, without.models) == (False, ())


def test_an_engines_arguments_are_in_argv_form() -> None:
    """Flags, values, lists and JSON come out as a command line has them; false and null are left out."""
    text = """
backends:
  v:
    models: [tiny]
    engine:
      kind: vllm
      args:
        max-model-len: 2048
        enforce_eager: true
        quantization: null
        trust-remote-code: false
        middleware: [a, b]
        override-generation-config: {temperature: 0}
        gpu-memory-utilization: 0.5
"""
    engine = plan_of(text).backends[0].engine
    assert engine is not None
    assert engine.args == (
        *("--max-model-len", "2048", "--enforce-eager", "--middleware", "a", "b"),
        *("--override-generation-config", '{"temperature":0}', "--gpu-memory-utilization", "0.5"),
    )
    assert (engine.model, engine.served_name, engine.port) == ("tiny", "tiny", 19048)


def test_an_engines_endpoint_is_on_loopback() -> None:
    """The engine listens where the endpoint points, and may load something other than the name it serves."""
    text = "backends:\n  v: {engine: {kind: vllm, model: /models/x, port: 7000}, models: [x]}\n"
    backend = plan_of(text).backends[0]
    assert backend.endpoints[0].url == "http://127.0.0.1:7000"
    assert backend.engine is not None
    assert (backend.engine.model, backend.engine.served_name) == ("/models/x", "x")


@pytest.mark.parametrize(
    ("section", "limits"),
    [
        pytest.param("{}", Limits(Rate(10, 10)), id="the default"),
        pytest.param("{requests_per_minute: 7}", Limits(Rate(7, 7)), id="burst follows the rate"),
        pytest.param("{burst: 20}", Limits(Rate(10, 20)), id="a burst of its own"),
        pytest.param("{enabled: false, tokens_per_day: 3}", UNLIMITED, id="off takes all away"),
        pytest.param(
            "{requests_per_minute: null, tokens_per_minute: 9, tokens_per_day: 8, tokens_per_month: 7,"
            " max_concurrent: 6}",
            Limits(None, Rate(9, 9), 8, 7, 6),
            id="tokens, quotas and slots",
        ),
    ],
)
def test_limits_of_a_key_without_its_own(section: str, limits: Limits) -> None:
    """The default limits are complete values; none is left to be worked out later."""
    assert plan_of(f"{MINIMAL}rate_limit: {section}\n").limits.default == limits


def test_paths_are_relative_to_the_config() -> None:
    """The key file is beside the config, unless its path is absolute."""
    assert plan_of(MINIMAL, source=Path("conf/aiaas.yaml")).auth.keys_file == Path("conf/keys.yaml")
    text = MINIMAL + "auth: {keys_file: /etc/aiaas/keys.yaml}\n"
    assert plan_of(text, source=Path("conf/aiaas.yaml")).auth.keys_file == Path("/etc/aiaas/keys.yaml")
    text = MINIMAL + "monitoring: {usage_file: usage.db}\n"
    assert plan_of(text, source=Path("conf/aiaas.yaml")).monitoring.usage_file == Path("conf/usage.db")


def test_the_digest_counts_what_counts() -> None:
    """Comments, order of sections and secrets' values do not change it; a limit does."""
    keyed = MINIMAL + "    api_key_env: KEY\n"
    digest = plan_of(keyed, {"KEY": "a"}).digest
    assert len(digest) == 12
    assert plan_of("# a comment\nauth:\n" + keyed, {"KEY": "b"}).digest == digest
    assert plan_of(keyed + "rate_limit: {burst: 11}\n", {"KEY": "a"}).digest != digest
    isolated = MINIMAL + "    isolate_cache: key\n    isolate_cache_secret_env: SALT\n"
    assert plan_of(isolated, {"SALT": "a" * 32}).digest == plan_of(isolated, {"SALT": "b" * 32}).digest
    assert plan_of(isolated, {"SALT": "a" * 32}).digest != plan_of(MINIMAL).digest
    assert plan_of(MINIMAL + "request: {fields: {priority: pass}}\n").digest != plan_of(MINIMAL).digest
    engine = "backends: {v: {engine: {kind: vllm, env: {TOKEN: '${TOKEN}'}}, models: [m]}}\n"
    plan = plan_of(engine, {"TOKEN": "hunter1"})
    assert plan.digest == plan_of(engine, {"TOKEN": "hunter2"}).digest
    assert "hunter" not in repr(canonical(plan))
    assert "digest" not in canonical(plan)
    config = load_text(MINIMAL, file="f", env={}).config
    assert config is not None
    assert compile_plan(config, overrides=("VLLM_TIMEOUT",)).digest == compile_plan(config).digest
    assert canonical(plan)["auth"]["keys_file"] == "(a file)"  # wherever it lies
    named = "backends: {v: {url: 'http://v', endpoints: [/v1/completions], models: [{name: m, aliases: [%s]}]}}\n"
    assert plan_of(named % "a, b").digest == plan_of(named % "b, a").digest  # nothing lists them


def test_a_browsers_origins_and_tls_are_in_the_plan() -> None:
    """If the config has them."""
    server = plan_of(MINIMAL).server
    assert (server.cors_allow_origins, server.tls) == (None, None)
    text = MINIMAL + "server: {cors: {allow_origins: ['https://a']}, tls: {cert_file: a.crt, key_file: /b/a.key}}\n"
    server = plan_of(text, source=Path("conf/aiaas.yaml")).server
    assert server.cors_allow_origins == ("https://a",)
    assert server.tls is not None
    assert (server.tls.cert_file, server.tls.key_file) == (Path("conf/a.crt"), Path("/b/a.key"))


def test_equal_plans_do_the_same() -> None:
    """The file and the overrides do not count in a comparison, the backend's key does."""
    keyed = MINIMAL + "    api_key_env: KEY\n"
    plan = plan_of(keyed, {"KEY": "a"})
    assert plan == plan_of("# a comment\n" + keyed, {"KEY": "a"})
    assert plan == dataclasses.replace(plan, source=Path("elsewhere"), overrides=("LOG_LEVEL",))
    assert plan != plan_of(keyed, {"KEY": "b"})
    isolated = MINIMAL + "    isolate_cache: key\n    isolate_cache_secret_env: SALT\n"
    assert plan_of(isolated, {"SALT": "a" * 32}) != plan_of(isolated, {"SALT": "b" * 32})
    assert "aaaa" not in repr(plan_of(isolated, {"SALT": "a" * 32}))


names = st.text(
    min_size=1,
    max_size=6,
    alphabet=st.characters(min_codepoint=33, max_codepoint=1000, exclude_characters="$", exclude_categories=["Cc"]),
)


@given(st.lists(names, min_size=1, max_size=4, unique=True), st.integers(1, 10**6), st.none() | st.integers(1, 99))
def test_compile_is_deterministic(models: list[str], rate: int, burst: int | None) -> None:
    """The same config gives an equal Plan with the same digest, each time."""
    config = {
        "backends": {"v": {"url": "http://v", "models": models}},
        "rate_limit": {"requests_per_minute": rate, "burst": burst},
    }
    from aiaas.config.model import Config

    first, second = (compile_plan(Config.model_validate(config)) for _ in range(2))
    assert first == second
    assert first.digest == second.digest
    assert list(first.routes["/v1/completions"]) == models


def test_backend_offers_the_whole_list_and_shares_its_routes() -> None:
    """By default; one table of models for all paths, so that thousands of models are not there a dozen times."""
    plan = plan_of(MINIMAL)
    assert tuple(plan.routes) == GENERATE
    assert plan.serves_models
    assert len({id(table) for table in plan.routes.values()}) == 1
    narrow = plan_of(MINIMAL.rstrip() + "\n    endpoints: [/v1/score]\n")
    assert (set(narrow.routes), narrow.serves_models) == ({"/v1/score"}, False)
    assert narrow.digest != plan.digest


def test_isolated_cache_leaves_out_the_path_without_a_salt() -> None:
    """By default; an operator who lists it gets it."""
    isolated = MINIMAL + "    isolate_cache: key\n    isolate_cache_secret_env: SALT\n"
    salt = {"SALT": "a" * 32}
    assert set(GENERATE) - set(plan_of(isolated, salt).routes) == {"/v2/embed"}
    assert set(plan_of(isolated + "    endpoints: [/v2/embed]\n", salt).routes) == {"/v2/embed"}
