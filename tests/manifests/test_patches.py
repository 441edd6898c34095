"""`kubernetes.patches` and `.extra`: what they change, and what they must not take away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.manifests.patches import Patched
from aiaas.manifests.render import render_manifests, with_patches
from tests.manifests.rendering import BACKEND, KEYS, TLS, objects_of, plan_of, with_kubernetes

APP = "Deployment/api-router-service"
ENGINE = "backends:\n  vllm: {engine: {kind: vllm}, models: [m]}\n"


def text_of(*patches: dict[str, Any], extra: list[Any] | None = None, **fields: str) -> str:
    """A config with these patches and further objects."""
    return with_kubernetes(patches=json.dumps(patches), extra=json.dumps(extra or []), **fields)


def patch_of(kind: str, merge: Any, name: str | None = None) -> dict[str, Any]:
    """One patch as the config has it."""
    return {"kind": kind, "merge": merge} | ({} if name is None else {"name": name})


def pod_patch(spec: Any) -> dict[str, Any]:
    """A patch of the gateway's pod."""
    return patch_of("Deployment", {"spec": {"template": {"spec": spec}}}, "api-router-service")


def container_patch(**fields: Any) -> dict[str, Any]:
    """A patch of the gateway's container."""
    return pod_patch({"containers": [{"name": "api-router"} | fields]})


def result(text: str) -> Patched:
    """All objects after the patches."""
    return with_patches(plan_of(text), KEYS)


def faults(text: str) -> list[str]:
    """The faults of the patches, each with its field."""
    return [f"{'.'.join(map(str, path[1:]))}: {message}" for _, _, path, message in result(text).findings]


def test_a_patch_changes_what_it_names_alone() -> None:
    """Everything else is rendered as without it."""
    plain = objects_of(with_kubernetes())
    made = objects_of(text_of(pod_patch({"priorityClassName": "high"})))
    assert made[APP]["spec"]["template"]["spec"].pop("priorityClassName") == "high"
    assert made == plain


def test_a_patch_without_a_name_is_for_the_whole_kind() -> None:
    """Such as every Deployment: the gateway's and the engines'."""
    patch = patch_of("Deployment", {"spec": {"template": {"spec": {"schedulerName": "own"}}}})
    text = ENGINE + text_of(patch).removeprefix(BACKEND)
    made = [each for each in objects_of(text).values() if each["kind"] == "Deployment"]
    assert [each["spec"]["template"]["spec"]["schedulerName"] for each in made] == ["own", "own"]


def test_patches_apply_in_their_order() -> None:
    """A later one sees the earlier one's result."""
    first, second = patch_of("Service", {"spec": {"ports": [{"port": 8080, "name": "a"}]}}), {}
    second = patch_of("Service", {"spec": {"ports": [{"port": 8080, "nodePort": 30080}]}})
    [port] = objects_of(text_of(first, second))["Service/api-router-service"]["spec"]["ports"]
    assert (port["name"], port["nodePort"]) == ("a", 30080)


def test_the_config_map_is_patched_by_its_stem() -> None:
    """Its name ends with the digest of its content, which nobody can write into a patch."""
    patch = patch_of("ConfigMap", {"metadata": {"labels": {"a": "b"}}}, "api-router-config")
    [made] = [each for each in objects_of(text_of(patch)).values() if each["kind"] == "ConfigMap"]
    assert made["metadata"]["labels"]["a"] == "b"


@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress"])
def test_an_object_may_be_deleted(kind: str) -> None:
    """The gateway runs without it."""
    made = objects_of(text_of(patch_of(kind, {"$patch": "delete"})))
    assert kind not in {each["kind"] for each in made.values()}


def test_a_number_of_replicas_needs_the_autoscaler_gone() -> None:
    """Otherwise each apply would set it back."""
    number = patch_of("Deployment", {"spec": {"replicas": 4}}, "api-router-service")
    assert faults(text_of(number))[0].startswith("patches.0: Deployment/api-router-service: spec.replicas would reset")
    gone = patch_of("HorizontalPodAutoscaler", {"$patch": "delete"})
    assert objects_of(text_of(gone, number))[APP]["spec"]["replicas"] == 4


FIRST = pod_patch({"priorityClassName": "high"})
MOUNT = {"mountPath": "/etc/aiaas/config", "$patch": "delete"}
AWAY = [
    pytest.param(container_patch(readinessProbe=None), "readinessProbe has to ask /ready", id="a probe"),
    pytest.param(container_patch(livenessProbe={"httpGet": {"path": "/"}}), "livenessProbe has to ask", id="its path"),
    pytest.param(container_patch(lifecycle=None), "preStop has to sleep 10 s", id="preStop"),
    pytest.param(container_patch(lifecycle={"preStop": {"sleep": {"seconds": 9}}}), "preStop has to", id="shorter"),
    pytest.param(container_patch(args=["serve"]), "args has to begin with serve --config", id="the config's path"),
    pytest.param(container_patch(command=["sh"]), "command has to begin with aiaas", id="the command"),
    pytest.param(container_patch(volumeMounts=[MOUNT]), "volumeMounts /etc/aiaas/config has to stay", id="the mount"),
    pytest.param(container_patch(ports=None), "ports http has to stay", id="the port"),
    pytest.param(
        pod_patch({"volumes": [{"name": "config", "configMap": {"name": "other"}}]}),
        "volumes config has to stay",
        id="the volume",
    ),
    pytest.param(pod_patch({"containers": [{"$patch": "replace"}]}), "the container api-router cannot", id="container"),
    pytest.param(pod_patch({"terminationGracePeriodSeconds": 30}), "terminationGracePeriodSeconds is too", id="grace"),
    pytest.param(
        patch_of("Deployment", {"spec": {"template": {"metadata": {"labels": {"app": "x"}}}}}),
        "spec.template.metadata.labels.app has to be api-router-service",
        id="the pods' label",
    ),
    pytest.param(
        patch_of("Deployment", {"spec": {"selector": {"matchLabels": {"team": "x"}}}}),
        "spec.selector has to stay",
        id="a Deployment's selector",
    ),
    pytest.param(patch_of("Service", {"spec": {"selector": None}}), "spec.selector has to stay", id="a Service's"),
    pytest.param(patch_of("ConfigMap", {"data": {"config.yaml": "x"}}), "data has to stay", id="the config"),
    pytest.param(patch_of("Service", {"metadata": {"name": "x"}}), "metadata.name cannot be changed", id="a name"),
    pytest.param(patch_of("Secret", {"$patch": "delete"}), "cannot be deleted", id="the keys"),
    pytest.param(patch_of("Job", {}), "nothing of kind Job and that name is rendered; the kinds are", id="no kind"),
    pytest.param(patch_of("Service", {}, "x"), "this kind has api-router-service", id="no name"),
    pytest.param(patch_of("Service", {"spec": {"ports": [{}]}}), "spec.ports: each item needs port", id="no key"),
]


@pytest.mark.parametrize(("patch", "words"), AWAY)
def test_a_patch_cannot_take_away_what_is_relied_on(patch: dict[str, Any], words: str) -> None:
    """An error at the patch, and the objects stay as they were."""
    text = text_of(FIRST, patch)
    found = faults(text)
    assert found
    assert all(line.startswith("patches.1: ") for line in found)
    assert any(words in line for line in found)
    assert render_manifests(plan_of(text), KEYS) == render_manifests(plan_of(text_of(FIRST)), KEYS)


@pytest.mark.parametrize(
    "patch",
    [
        container_patch(readinessProbe={"periodSeconds": 1}, lifecycle={"preStop": {"sleep": {"seconds": 20}}}),
        container_patch(args=["serve", "--config", "/etc/aiaas/config/config.yaml", "--debug"]),
        container_patch(volumeMounts=[{"mountPath": "/extra", "name": "extra"}], image="other:2"),
        pod_patch({"volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]}),
        pod_patch({"containers": [{"name": "side", "image": "s:1"}], "terminationGracePeriodSeconds": 9000}),
    ],
    ids=["numbers", "an argument more", "a mount more", "a larger /tmp", "a sidecar"],
)
def test_everything_else_may_change(patch: dict[str, Any]) -> None:
    """The gateway does not rely on it."""
    assert faults(text_of(patch) + TLS) == []


def test_an_engines_pod_is_guarded_as_well() -> None:
    """Its probes and selectors are relied on by the gateway."""
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "vllm", "startupProbe": None}]}}}}
    text = text_of(patch_of("Deployment", patch, "api-router-engine-vllm"))
    [fault] = faults(ENGINE + text.removeprefix(BACKEND))
    assert "startupProbe has to ask /health" in fault


def test_extra_objects_are_rendered_as_they_are() -> None:
    """Those of unknown kinds before the pods, which may need them."""
    extra = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authorities"}, "data": {"ca.pem": "x"}},
        {"apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "metadata": {"name": "keys"}, "spec": {}},
    ]
    made = list(objects_of(text_of(extra=extra)).values())
    kinds = [each["kind"] for each in made]
    assert all(each in made for each in extra)
    assert kinds.index("ExternalSecret") < kinds.index("Deployment")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"kind": "ConfigMap", "metadata": {"name": "a"}}, "needs apiVersion, kind and metadata.name"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": []}, "needs apiVersion, kind and metadata.name"),
        (
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api-router-service", "namespace": "system"}},
            "Service/api-router-service is rendered already",
        ),
    ],
)
def test_an_extra_object_needs_a_name_of_its_own(extra: dict[str, Any], words: str) -> None:
    """Two objects of one name would overwrite each other at each apply."""
    [fault] = faults(text_of(extra=[extra]))
    assert fault.startswith("extra.0: ")
    assert words in fault


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["delete", "replace", "api-router", "config"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "$patch",
                    "name",
                    "spec",
                    "template",
                    "metadata",
                    "labels",
                    "containers",
                    "volumes",
                    "args",
                    "lifecycle",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(
    st.sampled_from(["Deployment", "Service", "ConfigMap", "HorizontalPodAutoscaler", "NetworkPolicy", "Ingress"]),
    st.dictionaries(st.sampled_from(["spec", "metadata", "$patch", "kind", "data"]), VALUES, max_size=3),
)
def test_any_patch_gives_objects_or_findings(kind: str, merge: dict[str, Any]) -> None:
    """Whatever its shape."""
    made = result(text_of(patch_of(kind, merge)))
    assert made.objects
    assert all(each["metadata"]["name"] for each in made.objects)
