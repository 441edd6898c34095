"""The gateway's own objects."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from aiaas.config.load import load_text
from aiaas.plan.compile import compile_plan
from tests.manifests.rendering import KEYS, MINIMAL, TLS, objects_of, one, plan_of, with_kubernetes


def container(text: str, env: dict[str, str] | None = None) -> Any:
    """The gateway's container."""
    [only] = one(text, "Deployment", env)["spec"]["template"]["spec"]["containers"]
    return only


def test_the_objects_bear_the_plans_names() -> None:
    """With a host and nothing else, all names are the plan's."""
    made = objects_of(with_kubernetes(immutable_config="false"))
    for name in ("Service/api-router-service", "Deployment/api-router-service", "ConfigMap/api-router-config"):
        assert name in made
    assert {"Secret/api-router-keys", "HorizontalPodAutoscaler/api-router-hpa"} <= set(made)
    assert made["Service/api-router-service"]["spec"]["selector"] == {"app": "api-router-service"}
    assert made["Service/api-router-service"]["spec"]["ports"][0]["port"] == 8080


def test_the_config_map_is_the_plan_that_was_rendered() -> None:
    """Loaded and compiled where it is mounted, its content equals the Plan."""
    plan = plan_of(MINIMAL)
    text = one(MINIMAL, "ConfigMap")["data"]["config.yaml"]
    loaded = load_text(text, file="config.yaml", env={})
    assert loaded.config is not None
    assert compile_plan(loaded.config, source=Path("/etc/aiaas/config/config.yaml")) == plan.gateway


def test_an_immutable_config_is_referred_to_by_its_content() -> None:
    """The Deployment mounts the ConfigMap of that content, so that an undone rollout brings back the old one."""
    made = objects_of(MINIMAL)
    [config] = [each for each in made.values() if each["kind"] == "ConfigMap"]
    [volume] = [
        v for v in made["Deployment/api-router-service"]["spec"]["template"]["spec"]["volumes"] if "configMap" in v
    ]
    assert config["immutable"] is True
    assert volume["configMap"]["name"] == config["metadata"]["name"] != "api-router-config"


def test_gitops_keeps_the_config_of_an_old_replica_set() -> None:
    """It needs that ConfigMap until its last pod is gone, and for going back; marks of the operator's stay."""
    fields = {"annotations": "{argocd.argoproj.io/sync-options: ServerSideApply=true}"}
    assert one(with_kubernetes(**fields), "ConfigMap")["metadata"]["annotations"] == {
        "argocd.argoproj.io/sync-options": "ServerSideApply=true,Prune=false",
        "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
    }
    assert "annotations" not in one(with_kubernetes(immutable_config="false"), "ConfigMap")["metadata"]


def test_a_config_of_fixed_name_rolls_the_pods_by_a_checksum() -> None:
    """Another config is another annotation on the pods."""

    def annotations(text: str) -> Any:
        return one(text, "Deployment")["spec"]["template"]["metadata"]["annotations"]

    fixed = with_kubernetes(immutable_config="false")
    assert "immutable" not in one(fixed, "ConfigMap")
    assert (
        annotations(fixed)["checksum/config"] != annotations(fixed + "request: {max_choices: 2}\n")["checksum/config"]
    )
    assert "checksum/config" not in annotations(MINIMAL)


def test_the_keys_go_into_a_secret_and_roll_nothing() -> None:
    """The file is there byte for byte; another one changes the Secret alone."""
    made, other = objects_of(MINIMAL), objects_of(MINIMAL, keys_text=KEYS + "\n")
    assert base64.b64decode(made["Secret/api-router-keys"]["data"]["keys.yaml"]).decode() == KEYS
    assert {name for name in made if made[name] != other[name]} == {"Secret/api-router-keys"}


def test_a_secret_of_others_is_referred_to_only() -> None:
    """With keys_secret.create: false there is no Secret, and its name is mounted."""
    made = objects_of(with_kubernetes(keys_secret="{create: false, name: from-vault}"), keys_text=None)
    assert not [name for name in made if name.startswith("Secret/")]
    volumes = made["Deployment/api-router-service"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "keys", "secret": {"secretName": "from-vault", "defaultMode": 0o440}} in volumes


def test_without_authentication_no_keys_are_mounted() -> None:
    """auth.enabled: false needs no Secret."""
    text = MINIMAL + "auth: {enabled: false}\n"
    assert "keys" not in [mount["name"] for mount in container(text)["volumeMounts"]]


def test_tls_in_the_pod_has_its_certificate_mounted() -> None:
    """The config names the files of the Secret, the Secret is mounted there, and probes speak TLS."""
    text = with_kubernetes(ingress="{tls_secret: cert}") + TLS
    tls = plan_of(text).gateway.server.tls
    assert tls is not None
    assert (str(tls.cert_file), str(tls.key_file)) == ("/etc/aiaas/tls/tls.crt", "/etc/aiaas/tls/tls.key")
    pod = one(text, "Deployment")["spec"]["template"]["spec"]
    assert {"name": "tls", "secret": {"secretName": "cert", "defaultMode": 0o440}} in pod["volumes"]
    assert container(text)["livenessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_a_load_balancer_passes_bytes_to_tls_in_the_pod() -> None:
    """443 outside, and the pods see who the clients are; the metrics port is not on it."""
    spec = one(with_kubernetes(expose="loadbalancer") + TLS, "Service")["spec"]
    assert (spec["type"], spec["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert spec["ports"] == [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 8080}]
    assert spec["selector"] == {"app": "api-router-service"}


def test_a_usage_file_has_a_volume() -> None:
    """The root file system is read-only."""
    text = MINIMAL + "monitoring: {usage_file: usage.sqlite}\n"
    assert {"name": "data", "mountPath": "/var/lib/aiaas"} in container(text)["volumeMounts"]
    assert str(plan_of(text).gateway.monitoring.usage_file) == "/var/lib/aiaas/usage.sqlite"


def test_nothing_is_mounted_by_sub_path() -> None:
    """A subPath is never updated, so revoked keys would live on."""
    assert all("subPath" not in mount for mount in container(MINIMAL)["volumeMounts"])


def test_autoscaler_also_uses_requests_in_flight_if_configured() -> None:
    """By its own gauge, averaged over the pods; without an adapter that metric would stop the scaling."""
    scaler = one(with_kubernetes(inflight_target="200"), "HorizontalPodAutoscaler")["spec"]
    by_cpu, by_requests = scaler["metrics"]
    assert by_cpu["resource"]["name"] == "cpu"
    assert by_requests["pods"]["metric"] == {"name": "aiaas_requests_in_flight"}
    assert by_requests["pods"]["target"] == {"type": "AverageValue", "averageValue": "200"}


def test_the_autoscaler_owns_the_number_of_replicas() -> None:
    """The Deployment never has a number, so no apply resets it or takes it away; a fixed size is a range of one."""
    assert "replicas" not in one(MINIMAL, "Deployment")["spec"]
    scaler = one(MINIMAL, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 10)
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    fixed = with_kubernetes(replicas="{min: 3, max: 3}")
    assert "replicas" not in one(fixed, "Deployment")["spec"]
    scaler = one(fixed, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 3)


def test_a_pod_has_time_to_drain() -> None:
    """preStop comes before SIGTERM, and the grace period counts both."""
    deployment = one(MINIMAL + "server: {drain_timeout: 60s}\n", "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 10}}
    assert pod["terminationGracePeriodSeconds"] == 80


def test_probes_ask_what_they_are_for() -> None:
    """Readiness follows the drain; liveness only whether the process lives."""
    probes = container(MINIMAL)
    assert probes["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert probes["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}


def test_variables_come_from_secrets() -> None:
    """Each variable of the config, and a backend's key, has a secretKeyRef; an unused one has none."""
    text = """
backends: {a: {url: "http://${HOST}:8000", models: [m], api_key_env: KEY}}
kubernetes:
  host: a.example.com
  env: {HOST: {secret: s, key: host}, KEY: {secret: s, key: k}, UNUSED: {secret: s, key: u}}
"""
    env = container(text, {"HOST": "vllm", "KEY": "hunter2"})["env"]
    assert env == [
        {"name": "HOST", "valueFrom": {"secretKeyRef": {"name": "s", "key": "host"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]


def test_the_environment_is_not_that_of_other_services() -> None:
    """A Service named `prometheus` would inject PROMETHEUS_PORT, which overrides our config."""
    assert one(MINIMAL, "Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("fields", "annotated"),
    [({}, True), ({"monitoring": "{service_monitor: true}"}, False)],
    ids=["by annotation", "by a ServiceMonitor"],
)
def test_pods_are_scraped_once(fields: dict[str, str], annotated: bool) -> None:
    """The annotations are for a Prometheus without the operator; with a ServiceMonitor they would scrape twice."""
    metadata = one(with_kubernetes(**fields), "Deployment")["spec"]["template"]["metadata"]
    assert ("prometheus.io/port" in metadata.get("annotations", {})) is annotated


def test_placement_and_registry_are_passed_on() -> None:
    """Node selector, tolerations and pull secrets are in the pod as configured."""
    text = with_kubernetes(
        node_selector="{disk: ssd}", tolerations="[{key: a, operator: Exists}]", image_pull_secrets="[reg]"
    )
    pod = one(text, "Deployment")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"] == [{"key": "a", "operator": "Exists"}]
    assert pod["imagePullSecrets"] == [{"name": "reg"}]


def test_a_namespace_is_rendered_where_asked() -> None:
    """The namespace comes first, and enforces Pod Security `restricted`."""
    made = list(objects_of(with_kubernetes(create_namespace="true")).values())
    assert (made[0]["kind"], made[0]["metadata"]["name"]) == ("Namespace", "system")
    assert "namespace" not in made[0]["metadata"]
    assert made[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_openshift_assigns_user_and_group() -> None:
    """Its policy refuses ids that are not of the namespace's range; the rest of the hardening stays."""
    pod = one(with_kubernetes(platform="openshift"), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_plain_values_are_written_out() -> None:
    """With the dollar doubled, since Kubernetes expands $(NAME); others keep their Secret."""
    text = with_kubernetes(env="{HOST: {value: 'v$(X).gpu'}, KEY: {secret: s, key: k}}")
    text = text.replace("vllm-gpt-oss-20b.system", "${HOST}").replace("models:", "api_key_env: KEY, models:")
    assert container(text, {"HOST": "v.gpu", "KEY": "k"})["env"] == [
        {"name": "HOST", "value": "v$$(X).gpu"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]


def test_the_service_account_may_bear_a_clouds_role() -> None:
    """By its annotations; names of pull secrets may have dots."""
    text = with_kubernetes(
        service_account_annotations="{eks.amazonaws.com/role-arn: 'arn:aws:iam::1:role/x'}",
        image_pull_secrets="[registry.example.com]",
    )
    assert one(text, "ServiceAccount")["metadata"]["annotations"] == {
        "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"
    }
    pod = one(text, "Deployment")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry.example.com"}]


@pytest.mark.parametrize(
    ("given", "volume", "file"),
    [
        ("{config_map: company-ca}", {"configMap": {"name": "company-ca"}}, "ca.crt"),
        ("{secret: ca, key: b.pem}", {"secret": {"secretName": "ca", "defaultMode": 0o440}}, "b.pem"),
    ],
    ids=["a ConfigMap", "a Secret"],
)
def test_own_authorities_are_mounted_and_named(given: str, volume: dict[str, Any], file: str) -> None:
    """OpenSSL, and so every TLS connection of the gateway, reads the file that SSL_CERT_FILE names."""
    text = with_kubernetes(authorities=given)
    pod = one(text, "Deployment")["spec"]["template"]["spec"]
    assert {"name": "authorities"} | volume in pod["volumes"]
    mount = {"name": "authorities", "mountPath": "/etc/aiaas/authorities", "readOnly": True}
    assert mount in container(text)["volumeMounts"]
    assert container(text)["env"] == [{"name": "SSL_CERT_FILE", "value": f"/etc/aiaas/authorities/{file}"}]
    assert "env" not in container(MINIMAL)
