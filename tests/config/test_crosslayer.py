"""Rules between proxy and cluster. Their messages are in cases/cluster-*; here is the arithmetic behind them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.crosslayer import check_keys_secret
from aiaas.config.ingress import ENTRY_POINTS
from aiaas.config.load import load_text

TEXT = "backends:\n  v: {url: 'http://v:8000', models: [m]}\n"


def test_config_without_deployment_skips_the_cluster_rules() -> None:
    """A config without `kubernetes` gets no finding about ingresses; the same config being rendered does."""
    loaded = load_text(TEXT, file="f", env={})
    assert check(loaded, {}) == ()
    assert "AIA510" in [problem.code for problem in check(loaded, {}, deployed=True)]


@pytest.mark.parametrize(
    ("size", "found"),
    [
        pytest.param(192 * 1024, [], id="what an annotation holds in base64"),
        pytest.param(192 * 1024 + 1, ["warning"], id="more"),
        pytest.param(1024**2, ["warning"], id="just a Secret"),
        pytest.param(1024**2 + 1, ["error"], id="more than a Secret holds"),
    ],
)
def test_the_keys_have_to_fit_into_a_secret(size: int, found: list[str]) -> None:
    """From 192 KiB on only a server-side apply takes them, beyond 1 MiB nothing does."""
    config = load_text(TEXT, file="f", env={}).config
    assert config is not None
    problems = [(severity, path) for _, severity, path, _ in check_keys_secret(config, size)]
    assert problems == [(severity, ("auth", "keys_file")) for severity in found]


def test_keys_that_something_else_keeps_are_its_business() -> None:
    """A Secret that exists already is not rendered."""
    config = load_text(TEXT + "kubernetes: {keys_secret: {create: false}}\n", file="f", env={}).config
    assert config is not None
    assert list(check_keys_secret(config, 10 * 1024**2)) == []


Change = dict[str, Any]
# Nothing to find in it.
BASE: Change = {
    "rate_limit": {"store": "redis://redis:6379"},
    "backends": {"v": {"url": "http://v:8000", "models": ["m"]}},
    "kubernetes": {
        "host": "a.b",
        "image": "aiaas:1",
        "ingress": {"class": "haproxy", "controller_namespace": "haproxy"},
    },
}
ANNOTATIONS = "kubernetes.ingress.annotations"
SERVER_TIMEOUT = "haproxy.org/timeout-server"
BODY_SIZE = "haproxy-ingress.github.io/proxy-body-size"


def server(**fields: Any) -> Change:
    """A change of `server`."""
    return {"server": fields}


def backend(**fields: Any) -> Change:
    """A change of the only backend."""
    return {"backends": {"v": fields}}


def engine(**fields: Any) -> Change:
    """The backend as a vLLM that is rendered; `models` is the backend's, the rest the engine's."""
    models = fields.pop("models", ["m"])
    return {"backends": {"v": None, "e": {"engine": {"kind": "vllm"} | fields, "models": models}}}


def kubernetes(**fields: Any) -> Change:
    """A change of `kubernetes`."""
    return {"kubernetes": fields}


def ingress(name: str, namespace: str) -> Change:
    """The class of the Ingress, and where its controller is."""
    return kubernetes(ingress={"class": name, "controller_namespace": namespace})


def annotated(name: str, value: str, ingress_class: str = "haproxy") -> Change:
    """An annotation of the Ingress."""
    return kubernetes(ingress={"class": ingress_class, "annotations": {name: value}})


def limits(**amounts: Any) -> Change:
    """The gateway's resource limits; its requests are small."""
    return kubernetes(resources={"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": amounts})


def merged(base: Any, change: Any) -> Any:
    """`base` with `change` over it; None takes a backend away."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    both = base | {key: merged(base.get(key), value) for key, value in change.items()}
    return {key: value for key, value in both.items() if not (key == "v" and value is None)}


def found(*changes: Change) -> list[str]:
    """The problems of the base with these changes: letter of the severity, code and field."""
    config: Change = BASE
    for change in changes:
        config = merged(config, change)
    loaded = load_text(yaml.safe_dump(config), file="f", env={})
    problems = [*loaded.problems, *check(loaded, {})]
    return sorted(f"{problem.severity[0].upper()} {problem.code} {problem.path}" for problem in problems)


QUIET = kubernetes(expose="none")
# usual silence: 5 s to connect, once more after a failure and again, and the timeout.
TIMEOUT = "W AIA501 backends.v.timeout"
HEARTBEAT = "W AIA503 server.heartbeat"
DRAIN = "W AIA504 server.drain_timeout"
LONGER = "W AIA504 backends.v.total_timeout"
MIN, NO_CPU = "AIA505 kubernetes.replicas.min", "E AIA505 kubernetes.resources.requests.cpu"
WORKERS = "W AIA506 server.workers"
MEMORY = "W AIA506 kubernetes.resources.limits.memory"
CONNECTIONS = "W AIA520 server.max_connections"
APART = "W AIA219 kubernetes.replicas.max"
START = "W AIA507 backends.e.engine.start_timeout"
NAMESPACE = "AIA509 kubernetes.network_policy.monitoring_namespace"
CONTROLLER = "W AIA509 kubernetes.ingress.controller_namespace"
RETIRED = "W AIA510 kubernetes.ingress.class"
SECTION = "W AIA511 kubernetes.gateway.section"
IMAGE = "W AIA512 kubernetes.image"
ADDRESS = "W AIA513 server.trusted_proxies"
GATEWAY = kubernetes(expose="gateway", gateway={"name": "g", "section": "https", "controller_namespace": "c"})
OPEN = {"auth": {"enabled": False}}
OFF = "W AIA209 auth.enabled"
NO_PEER = "W AIA509 rate_limit.store"
MIB = 1024**2
# The memory of one worker beside connections: 100 MiB, and the budget of bodies.
NEEDED = 100 + 80

BOUNDARIES: list[tuple[str, list[Change], list[str]]] = [
    ("nothing", [], []),
    # silence
    ("just below the client's patience", [QUIET, backend(timeout="569s", connect_timeout="1ms", max_retries=0)], []),
    ("the client's patience", [QUIET, backend(timeout="570s", connect_timeout="1ms", max_retries=0)], [TIMEOUT]),
    ("exactly", [QUIET, backend(timeout="569s", connect_timeout="1s", max_retries=0)], [TIMEOUT]),
    (
        "the slowest of two is named",
        [QUIET, backend(timeout="700s"), {"backends": {"w": {"url": "http://w:1", "models": ["n"], "timeout": "15m"}}}],
        ["W AIA501 backends.w.timeout"],
    ),
    (
        "a parked one is not",
        [QUIET, {"backends": {"w": {"url": "http://w:8000", "models": ["n"], "timeout": "1h", "enabled": False}}}],
        [],
    ),
    ("as patient as the gateway at the worst", [annotated(SERVER_TIMEOUT, "419s")], []),
    ("as patient as it usually is", [annotated(SERVER_TIMEOUT, "165s")],
     [f"W AIA501 {ANNOTATIONS}.{SERVER_TIMEOUT}"]),
    ("not as patient as it usually is", [annotated(SERVER_TIMEOUT, "164s")],
     [f"E AIA501 {ANNOTATIONS}.{SERVER_TIMEOUT}"]),
    ("not as patient as at the worst", [annotated(SERVER_TIMEOUT, "418s")],
     [f"W AIA501 {ANNOTATIONS}.{SERVER_TIMEOUT}"]),
    ("no timeout at all", [annotated(SERVER_TIMEOUT, "x")], [f"E AIA501 {ANNOTATIONS}.{SERVER_TIMEOUT}"]),
    ("an annotation of no Ingress", [QUIET, annotated(SERVER_TIMEOUT, "1s")], []),
    ("an annotation of another controller", [annotated(SERVER_TIMEOUT, "1s", "other")], []),
    # bodies
    ("a body as large", [annotated(BODY_SIZE, "32m")], []),
    ("a smaller body", [annotated(BODY_SIZE, "32767k")], [f"E AIA502 {ANNOTATIONS}.{BODY_SIZE}"]),
    ("any body", [annotated(BODY_SIZE, "0")], []),
    ("no size", [annotated(BODY_SIZE, "x")], [f"E AIA502 {ANNOTATIONS}.{BODY_SIZE}"]),
    # heartbeat
    ("a heartbeat below a minute", [server(heartbeat="59s")], []),
    ("a heartbeat of a minute", [server(heartbeat="60s")], [HEARTBEAT]),
    ("no heartbeat", [server(heartbeat=0)], [HEARTBEAT]),
    ("the shortest heartbeat", [server(heartbeat="1ms")], []),
    ("no heartbeat, and nothing in front", [QUIET, server(heartbeat=0)], []),
    # drain
    ("a drain as long as the autoscaler waits", [server(drain_timeout="580s")], []),
    ("a longer one", [server(drain_timeout="580001ms")], [DRAIN]),
    ("a request as long as the drain", [backend(total_timeout="300s"), server(drain_timeout="300s")], []),
    ("a longer request", [backend(total_timeout="301s"), server(drain_timeout="300s")], [LONGER]),
    # replicas
    ("more at least than at most", [kubernetes(replicas={"min": 3, "max": 2})], [f"E {MIN}"]),
    ("as many", [kubernetes(replicas={"min": 2, "max": 2})], []),
    ("one", [kubernetes(replicas={"min": 1, "max": 2})], [f"W {MIN}"]),
    ("one, more than none", [kubernetes(replicas={"min": 1, "max": 1})], [f"W {MIN}"]),
    (
        "an autoscaler without a request",
        [kubernetes(replicas={"min": 2, "max": 3}, resources={"requests": {"cpu": None}})],
        [NO_CPU],
    ),
    (
        "no autoscaler, no request",
        [kubernetes(replicas={"min": 2, "max": 2}, resources={"requests": {"cpu": None}})],
        [],
    ),
    # workers
    ("a worker with half a CPU", [limits(cpu="500m")], []),
    (
        "a worker with none",
        [kubernetes(replicas={"max": 2}, resources={"requests": {"cpu": None}, "limits": {"cpu": "0"}})],
        [],
    ),
    ("two workers with a half", [limits(cpu="500m"), server(workers=2)], [WORKERS]),
    ("two workers with one and a half", [limits(cpu="1500m"), server(workers=2)], []),
    ("two workers with a bit more than one", [limits(cpu="1001m"), server(workers=2)], []),
    ("two workers with one", [limits(cpu="1"), server(workers=2)], [WORKERS]),
    ("three workers with two", [limits(cpu="2"), server(workers=3)], [WORKERS]),
    ("many workers without a limit", [limits(cpu=None, memory=None), server(workers=50)], []),
    ("memory for a worker", [limits(memory=f"{NEEDED}Mi"), server(max_connections=64)], [CONNECTIONS]),
    ("a byte less", [limits(memory=str(NEEDED * MIB - 1)), server(max_connections=64)], [MEMORY]),
    ("and for its connections", [limits(memory=f"{NEEDED + 12}Mi"), server(max_connections=1024)], []),
    ("not quite for those", [limits(memory=str((NEEDED + 12) * MIB - 1)), server(max_connections=1024)],
     [CONNECTIONS]),
    ("for two workers", [limits(memory=f"{2 * NEEDED + 12}Mi", cpu="2"), server(workers=2, max_connections=1024)], []),
    ("not for two", [limits(memory=f"{2 * NEEDED - 1}Mi", cpu="2"), server(workers=2, max_connections=1024)],
     [MEMORY]),
    # requests and limits
    (
        "a request as large as the limit",
        [kubernetes(resources={"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}})],
        [],
    ),
    (
        "no limit, no request",
        [kubernetes(resources={"requests": {"cpu": "9", "memory": None}, "limits": {"cpu": None, "memory": "1Gi"}})],
        [],
    ),
    (
        "a parked engine's request",
        [engine(pod={"resources": {"requests": {"memory": "40Gi"}}}), {"backends": {"e": {"enabled": False}}},
         {"backends": {"w": {"url": "http://w:8000", "models": ["n"]}}}],
        [],
    ),
    (
        "a simulator's pod",
        [engine(kind="simulator", pod={"resources": {"requests": {"memory": "40Gi"}}, "image": "x:latest"})],
        [],
    ),
    # counted apart
    ("two that count alone", [kubernetes(replicas={"max": 2}), {"rate_limit": {"store": "memory"}}], [APART]),
    ("one that counts alone", [kubernetes(replicas={"min": 1, "max": 1}), {"rate_limit": {"store": "memory"}}],
     [f"W {MIN}"]),
    ("no limits", [{"rate_limit": {"store": "memory", "enabled": False}}], []),
    ("workers are spoken of elsewhere", [limits(cpu="2"), server(workers=2), {"rate_limit": {"store": "memory"}}],
     ["W AIA219 server.workers"]),
    # engines
    ("an engine's shortest start", [engine(start_timeout="300s")], []),
    ("a shorter one", [engine(start_timeout="299s")], [START]),
    ("of a simulator", [engine(kind="simulator", start_timeout="1s")], []),
    (
        "as many tokens as the context",
        [engine(args={"max-model-len": 100}, models=[{"name": "m", "max_output_tokens": 100}])],
        [],
    ),
    (
        "more",
        [engine(args={"max_model_len": 100}, models=[{"name": "m", "max_output_tokens": 101}])],
        ["W AIA508 backends.e.models[0].max_output_tokens"],
    ),
    (
        "more by default",
        [engine(args={"max-model-len": 98}, models=[{"name": "m", "default_output_tokens": 99}])],
        ["W AIA508 backends.e.models[0].default_output_tokens"],
    ),
    (
        "a context that is not a number",
        [engine(args={"max-model-len": "auto"}, models=[{"name": "m", "max_output_tokens": 100}])],
        [],
    ),
    # policy
    ("no namespace for Prometheus", [kubernetes(network_policy={"monitoring_namespace": None})], [f"W {NAMESPACE}"]),
    (
        "nor metrics",
        [kubernetes(network_policy={"monitoring_namespace": None}), {"monitoring": {"prometheus": False}}],
        [],
    ),
    (
        "and a ServiceMonitor",
        [kubernetes(network_policy={"monitoring_namespace": None}, monitoring={"service_monitor": True})],
        [f"E {NAMESPACE}"],
    ),
    ("no policy", [kubernetes(network_policy={"enabled": False})], ["W AIA509 kubernetes.network_policy.enabled"]),
    ("nor metrics to read", [kubernetes(network_policy={"enabled": False}), {"monitoring": {"prometheus": False}}], []),
    ("a Gateway", [GATEWAY], []),
    ("its namespace", [GATEWAY, kubernetes(gateway={"namespace": "n", "controller_namespace": None})], []),
    ("neither", [GATEWAY, kubernetes(gateway={"controller_namespace": None})], ["W AIA509 kubernetes.gateway"]),
    ("a listener of any kind", [GATEWAY, kubernetes(gateway={"section": None})], [SECTION]),
    # the store behind the policy
    ("a store by its address", [{"rate_limit": {"store": "redis://10.0.0.1"}}], []),
    ("a cluster by its addresses", [{"rate_limit": {"store": "redis+cluster://10.0.0.1,[::1]"}}], [NO_PEER]),
    ("a cluster by name and address", [{"rate_limit": {"store": "redis+cluster://redis,10.0.0.1"}}], [NO_PEER]),
    ("a cluster by name", [{"rate_limit": {"store": "redis+cluster://redis"}}], []),
    ("sentinels by their addresses", [{"rate_limit": {"store": "redis+sentinel://10.0.0.1/main"}}], [NO_PEER]),
    (
        "a namespace to reach",
        [{"rate_limit": {"store": "redis+cluster://10.0.0.1"}},
         kubernetes(network_policy={"store": {"namespace": "n"}})],
        [],
    ),
    (
        "pods to reach",
        [{"rate_limit": {"store": "redis+cluster://10.0.0.1"}},
         kubernetes(network_policy={"store": {"pod_labels": {"a": "b"}}})],
        [],
    ),
    (
        "no policy, any address",
        [{"rate_limit": {"store": "redis+cluster://10.0.0.1"}}, kubernetes(network_policy={"enabled": False})],
        ["W AIA509 kubernetes.network_policy.enabled"],
    ),
    # classes
    ("nginx by its retired controller", [ingress("nginx", "ingress-nginx")], [RETIRED]),
    ("nginx in another namespace", [ingress("nginx", "other")], [RETIRED]),
    ("nginx by F5", [ingress("nginx", "nginx-ingress")], []),
    ("another class in its namespace", [ingress("haproxy", "edge")], []),
    (
        "another class in nginx's namespace",
        [ingress("haproxy", "ingress-nginx")],
        ["W AIA519 kubernetes.ingress.controller_namespace"],
    ),
    (
        "the same without a policy",
        [
            ingress("haproxy", "ingress-nginx"),
            kubernetes(network_policy={"enabled": False}),
            {"monitoring": {"prometheus": False}},
        ],
        [],
    ),
    ("nginx that is not used", [QUIET, ingress("nginx", "ingress-nginx")], []),
    ("a redirect", [annotated("haproxy.org/ssl-redirect", "TRUE")], []),
    ("none", [annotated("haproxy.org/ssl-redirect", "no")], [f"E AIA511 {ANNOTATIONS}.haproxy.org/ssl-redirect"]),
    ("an entry point with TLS", [annotated(ENTRY_POINTS, "websecure", "traefik")], []),
    (
        "an entry point without",
        [annotated(ENTRY_POINTS, "a,web", "traefik")],
        [f"E AIA511 {ANNOTATIONS}.{ENTRY_POINTS}"],
    ),
    ("one that is not used", [QUIET, annotated(ENTRY_POINTS, "web", "traefik")], []),
    # images
    ("an image by its digest", [kubernetes(image=f"a/b@sha256:{64 * '0'}")], []),
    ("an image without a tag", [kubernetes(image="a:5000/b")], [IMAGE]),
    ("latest", [kubernetes(image="a/b:latest")], [IMAGE]),
    ("our own", [kubernetes(image=None)], []),
    ("an engine's image", [engine(pod={"image": "vllm:latest"})], ["W AIA512 backends.e.engine.pod.image"]),
    ("an engine's own", [engine()], []),
    # addresses
    ("no keys behind an ingress", [OPEN], [OFF, ADDRESS]),
    ("no keys behind a Gateway", [OPEN, GATEWAY], [OFF, ADDRESS]),
    ("no keys behind nothing", [OPEN, QUIET], [OFF]),
    ("no keys, and the ingress is known", [OPEN, server(trusted_proxies=["10.0.0.0/8"])], [OFF]),
    ("no keys, no limits", [OPEN, {"rate_limit": {"enabled": False}}], [OFF]),
    # lost
    ("usage in a file", [{"monitoring": {"usage_file": "u.db"}}], ["W AIA514 monitoring.usage_file"]),
    ("a config that changes", [kubernetes(immutable_config=False)], ["W AIA515 kubernetes.immutable_config"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), [pytest.param(*row[1:], id=row[0]) for row in BOUNDARIES])
def test_each_rule_ends_where_it_says(changes: list[Change], expected: list[str]) -> None:
    """On either side of each bound, and with each of its conditions missing."""
    assert found(*changes) == sorted(expected)


def test_without_a_controllers_namespace_the_class_is_warned_of() -> None:
    """Unless the namespace is the default one."""
    written = {"class": "other"}
    config = BASE | {"kubernetes": BASE["kubernetes"] | {"ingress": written}}
    for name, expected in (("other", [CONTROLLER]), ("nginx", [RETIRED]), ("my-nginx", [RETIRED])):
        written["class"] = name
        loaded = load_text(yaml.safe_dump(config), file="f", env={})
        assert [f"{p.severity[0].upper()} {p.code} {p.path}" for p in check(loaded, {})] == expected
    written["class"] = "other"
    config["kubernetes"] |= {"expose": "none"}
    assert check(load_text(yaml.safe_dump(config), file="f", env={}), {}) == ()  # the Ingress is not used
