"""Options that no example has together: whatever is chosen, the rendering is sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

import kubernetes_validate
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aiaas.config.check import check
from aiaas.config.load import load_text
from aiaas.config.problem import has_errors
from aiaas.manifests.render import render_manifests, to_files, to_stream
from tests.manifests import checks
from tests.manifests.rendering import KEYS, TLS, plan_or_problems

SECRET = {"SECRET": "hunter2"}
CUSTOM = ("HTTPRoute", "ServiceMonitor", "PrometheusRule")

BACKENDS = st.lists(
    st.sampled_from(
        [
            "{url: 'http://vllm.gpu:8000', models: [MODEL]}",
            "{urls: ['http://192.0.2.1:8000', 'https://llm.example.com/base'], models: [MODEL], max_inflight: 3}",
            "{dns: 'vllm.gpu.svc:8000', models: [MODEL], endpoints: [/tokenize, /v1/embeddings]}",
            "{engine: {kind: vllm}, models: [MODEL]}",
            "{engine: {kind: vllm, env: {A: '${SECRET}', B: 'x${SECRET}$$'}, pod: {gpus: 2, claim: w}}, models: [MODEL]}",  # noqa: E501
            "{engine: {kind: vllm}, api_key_env: SECRET, models: [MODEL], total_timeout: 90s}",
            "{engine: {kind: simulator}, models: [MODEL]}",
            "{enabled: false, engine: {kind: vllm}, models: [MODEL]}",
        ]
    ),
    min_size=1,
    max_size=4,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "api-router", "x" * 40]),
        "namespace": st.sampled_from(["default", "n" * 63]),
        "create_namespace": st.just("true"),
        "platform": st.just("openshift"),
        "expose": st.sampled_from(["ingress", "gateway", "loadbalancer", "none"]),
        "ingress": st.sampled_from(["{class: traefik}", "{class: haproxy, cluster_issuer: null}", "{class: alb}"]),
        "replicas": st.sampled_from(["{min: 1, max: 1}", "{min: 3, max: 3}", "{min: 1, max: 40}"]),
        "resources": st.sampled_from(["{limits: {memory: 2000Mi, cpu: 1500m}}", "{limits: {memory: null, cpu: null}}"]),
        "keys_secret": st.sampled_from(["{create: false}", "{name: other}"]),
        "network_policy": st.sampled_from(
            [
                "{enabled: false}",
                "{monitoring_namespace: null}",
                "{dns: {pod_labels: {}}}",
                "{egress: [{pod_labels: {a: b}}]}",
            ]
        ),
        "monitoring": st.just("{service_monitor: true, rules: true, dashboard: true}"),
        "immutable_config": st.just("false"),
        "labels": st.just("{team: a, app: b}"),
        "annotations": st.just("{note: 'x: y'}"),
        "image_pull_secrets": st.just("[registry]"),
        "tolerations": st.just("[{operator: Exists}]"),
    },
)
REST = st.lists(
    st.sampled_from(
        [
            TLS,
            "auth: {enabled: false}\n",
            "monitoring: {usage_file: u.sqlite, traces: {endpoint: 'http://otel:4318', headers: {A: '${SECRET}'}}}\n",
            "rate_limit: {store: 'redis://:${SECRET}@redis.data:6379/0'}\n",
        ]
    ),
    unique=True,
    max_size=3,
)


def config(backends: list[str], fields: Mapping[str, str], rest: list[str]) -> str:
    """The text of a config with these backends, these fields of its `kubernetes` section, and the rest."""
    names = ["vllm", "Second.one", "third_" + "x" * 40, "b-4"]
    lines = [
        f"  {name}: {backend.replace('MODEL', f'm{index}')}"
        for index, (name, backend) in enumerate(zip(names, backends, strict=False))
    ]
    lines.append("  always: {url: 'http://always', models: [always]}")
    fixed = {
        "image": "r/a:1",
        "host": "api.example.com",
        "gateway": "{name: g, namespace: gw, section: https}",
        "env": "{SECRET: {secret: s, key: k}}",
    }
    section = [f"  {name}: {value}" for name, value in {**fixed, **fields}.items()]
    return "\n".join(["backends:", *lines, "kubernetes:", *section, *rest]) + "\n"


def is_valid(text: str) -> bool:
    """Whether `aiaas validate` finds no error: some of these contradict each other."""
    loaded = load_text(text, file="aiaas.yaml", env=SECRET)
    return not has_errors(loaded.problems + check(loaded, SECRET))


@lru_cache(maxsize=1000)
def validate(text: str) -> None:
    """An object as JSON against its schema; most of a rendering is the same each time."""
    kubernetes_validate.validate(json.loads(text), "1.37", strict=True)


@settings(max_examples=25, deadline=None)
@given(BACKENDS, FIELDS, REST)
def test_whatever_is_chosen_is_sound(backends: list[str], fields: dict[str, str], rest: list[str]) -> None:
    """It is refused with a reason, or its schemas hold, its references resolve, its pods are restricted and its texts
    say what its objects are."""
    text = config(backends, fields, rest)
    assume(is_valid(text))
    plan, problems = plan_or_problems(text, SECRET)
    if plan is None:
        assert problems
        return
    makes_keys = plan.gateway.auth.enabled and plan.settings.keys_secret.create
    objects = render_manifests(plan, KEYS if makes_keys else None)
    stream = to_stream(plan, objects, "aiaas.yaml")
    assert checks.findings(checks.load_strictly(stream)) == []
    assert checks.load_strictly(stream) == list(objects)
    assert "hunter2" not in stream
    files = to_files(plan, objects, "aiaas.yaml")
    assert len(files) == len(objects) + 1
    assert [yaml.safe_load(text) for text in list(files.values())[:-1]] == list(objects)
    for made in objects:
        if made["kind"] not in CUSTOM:
            validate(json.dumps(made))
