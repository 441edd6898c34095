"""Every example, as it is rendered and checked in: an API server's schemas, faults that schemas cannot see, and that
the pods run the Plan that was rendered."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml

from aiaas.cli.gate import environment_for
from aiaas.cli.render import objects_of, plan_for_cluster
from aiaas.config.check import check
from aiaas.config.deployment import STAND_IN
from aiaas.config.load import load_file, load_text
from aiaas.config.problem import has_errors
from aiaas.manifests.render import to_files, to_stream
from aiaas.openai.paths import GENERATE
from aiaas.plan.compile import compile_plan
from aiaas.plan.kubernetes import KubernetesPlan
from tests.manifests import checks
from tests.repository_rules import ROOT

EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if path.name != "keys.yaml"]
# 1.30 is the oldest with preStop's sleep; the rest are what clusters run.
VERSIONS = ("1.30", "1.32", "1.34", "1.36", "1.37")
# Kinds that come with an operator: no schema of Kubernetes has them.
CUSTOM = {
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}
# The objects that must exist before each rendering; `kubectl apply` needs nothing else.
BEFORE = {
    "minimal": {"Secret/api-router-tls"},  # cert-manager makes it
    "plan": {"Secret/api-router-tls"},
    "engine": {"Secret/api-router-tls", "Secret/huggingface"},
    "several-models": {"Secret/wildcard-example-com", "Secret/partner"},
    "loadbalancer-tls": {"Secret/api-router-tls"},
    "shared-limits": {"Secret/api-router-tls"},
    "openshift": {"Secret/api-router-tls", "Secret/registry.example.com"},
    "production": {"Secret/api-router-keys", "Secret/vllm", "Secret/redis"},
}


class Rendering(NamedTuple):
    """An example, rendered."""

    name: str
    plan: KubernetesPlan
    objects: tuple[Any, ...]
    stream: str
    files: dict[str, str]


@lru_cache(maxsize=32)
def render(path: Path) -> Rendering:
    """As `aiaas render -c examples/...` does it."""
    plan, keys_text = plan_for_cluster(path)
    objects = objects_of(plan, keys_text)
    stream, files = to_stream(plan, objects, path.name), to_files(plan, objects, path.name)
    return Rendering(path.stem, plan, objects, stream, files)


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> Rendering:
    """Each example in turn."""
    return render(request.param)


def test_it_is_what_is_checked_in(example: Rendering) -> None:
    """manifests/<example>/ holds exactly this rendering; `nox -s golden` writes it."""
    folder = ROOT / "manifests" / example.name
    golden = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert example.files == golden, "nox -s golden"


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_of_kubernetes_accept_it(example: Rendering, version: str) -> None:
    """Strictly: no unknown field. A kind without a schema is a failure, unless it comes with an operator."""
    unknown = set()
    for made in example.objects:
        try:
            kubernetes_validate.validate(made, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add((made["kind"], made["apiVersion"]))
    assert unknown <= set(CUSTOM.items())


def test_schemas_of_kubernetes_refuse_what_is_wrong(example: Rendering) -> None:
    """The test above can fail: one field too many in each kind is found."""
    for made in example.objects:
        if made["kind"] not in CUSTOM:
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(made | {"surplus": 1}, VERSIONS[-1], strict=True)


def test_it_is_sound_beyond_schemas(example: Rendering) -> None:
    """Selectors, ports, volumes, references, order, quantities, Pod Security `restricted` (checks.py)."""
    assert checks.findings(checks.load_strictly(example.stream)) == []


def test_it_needs_nothing_else_to_be_there(example: Rendering) -> None:
    """Every reference is resolved by the rendering, but for Secrets that others make."""
    assert checks.dangling(list(example.objects)) == BEFORE[example.name]


def test_the_pods_run_the_plan_that_was_rendered(example: Rendering) -> None:
    """The ConfigMap, loaded and compiled where it is mounted, equals the Plan; its digest is at the top."""
    [config] = [o for o in example.objects if o["kind"] == "ConfigMap" and "config.yaml" in o.get("data", {})]
    written = example.plan.settings.env
    env = {name: written[name].value or STAND_IN for name in example.plan.variables}
    loaded = load_text(config["data"]["config.yaml"], file="config.yaml", env=env)
    assert not has_errors(loaded.problems + check(loaded, env))
    assert loaded.config is not None
    plan = compile_plan(loaded.config, source=Path("/etc/aiaas/config/config.yaml"), env=env)
    assert plan == example.plan.gateway
    assert example.stream.splitlines()[1] == f"# Config digest: {plan.digest}"


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "engine"], ids=lambda path: path.stem)
def test_the_pods_do_what_the_example_says(path: Path) -> None:
    """Without an engine of ours, the digest is that of the example itself: only places of files differ."""
    env = environment_for([path])
    config = load_file(path, env).config
    assert config is not None
    assert compile_plan(config, source=path, env=env).digest == render(path).plan.gateway.digest


def test_the_stream_and_the_files_hold_the_same(example: Rendering) -> None:
    """kustomization.yaml lists every file, in the order of application."""
    listing = yaml.safe_load(example.files["kustomization.yaml"])["resources"]
    assert [yaml.safe_load(example.files[name]) for name in listing] == list(example.objects)
    assert set(example.files) == {*listing, "kustomization.yaml"}


def test_the_plan_bears_the_plans_names_and_numbers() -> None:
    """integration-plan.md's manifests, field by field; docs/deploy.md lists the differences."""
    made = {checks.reference(each): each for each in render(ROOT / "examples" / "plan.yaml").objects}
    assert made["ConfigMap/api-router-config"]["metadata"]["namespace"] == "system"
    service = made["Service/api-router-service"]["spec"]
    assert (service["type"], service["selector"]) == ("ClusterIP", {"app": "api-router-service"})
    assert service["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080, "targetPort": 8080}]
    ingress = made["Ingress/api-router-ingress"]
    annotations = ingress["metadata"]["annotations"]
    assert annotations["cert-manager.io/cluster-issuer"] == "letsencrypt-prod"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "64m"
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"hosts": ["api.yourdomain.com"], "secretName": "api-router-tls"}]
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    assert [(path["path"], path["pathType"]) for path in paths] == [
        ("/v1", "Prefix"),
        *((path, "Exact") for path in sorted(GENERATE) if not path.startswith("/v1/")),
        ("/health", "Exact"),
    ]
    policy = made["NetworkPolicy/api-router-network-policy"]["spec"]
    assert policy["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "ingress-nginx"
    }
    assert policy["egress"][-1]["to"][0]["podSelector"] == {"matchLabels": {"app": "vllm"}}
    assert policy["egress"][-1]["ports"] == [{"protocol": "TCP", "port": 8000}]
    scaler = made["HorizontalPodAutoscaler/api-router-hpa"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 10)
    [container] = made["Deployment/api-router-service"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"memory": "256Mi", "cpu": "500m"},
        "limits": {"memory": "512Mi", "cpu": "1"},  # 1000m, as the API server writes it
    }
    config = yaml.safe_load(made["ConfigMap/api-router-config"]["data"]["config.yaml"])
    assert config["rate_limit"] == {"enabled": True, "requests_per_minute": 10, "burst": 20}
