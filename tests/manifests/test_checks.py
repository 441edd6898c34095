"""The rules of checks.py find their faults: a sound rendering with one thing broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests import checks
from tests.manifests.rendering import MINIMAL, objects_of, with_kubernetes

Made = dict[str, Any]
APP = "api-router-service"
TEXT = with_kubernetes(monitoring="{service_monitor: true}", create_namespace="true")


def pod(made: Made) -> Any:
    """The gateway's pod."""
    return made[f"Deployment/{APP}"]["spec"]["template"]["spec"]


def container(made: Made) -> Any:
    """The gateway's container."""
    return pod(made)["containers"][0]


def without(key: str) -> Callable[[Made], Any]:
    """Leaves one object out."""
    return lambda made: made.pop(next(name for name in made if name.startswith(key)))


BROKEN: list[Any] = [
    pytest.param(lambda m: m[f"Service/{APP}"]["metadata"].update(name="1api"), "not a name", id="name"),
    pytest.param(lambda m: m[f"Service/{APP}"]["metadata"].pop("namespace"), "namespace", id="namespace missing"),
    pytest.param(lambda m: m["Namespace/system"]["metadata"].update(namespace="x"), "namespace", id="namespace's own"),
    pytest.param(lambda m: m[f"Service/{APP}"]["metadata"].update(namespace="x"), "several namespaces", id="two"),
    pytest.param(lambda m: m[f"Service/{APP}"]["metadata"]["labels"].update(a="b c"), "label a=b c", id="label"),
    pytest.param(lambda m: m[f"Service/{APP}"]["metadata"].update(annotations={"a": 1}), "annotation", id="annotation"),
    pytest.param(lambda m: m[f"Service/{APP}"]["spec"].update(selector={"app": "x"}), "selects the pods", id="Service"),
    pytest.param(
        lambda m: m[f"Deployment/{APP}"]["spec"]["selector"]["matchLabels"].update(app="x"), "own pods", id="Deployment"
    ),
    pytest.param(
        lambda m: pod(m)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(app="x"),
        "own pods",
        id="spread",
    ),
    pytest.param(
        lambda m: m["HorizontalPodAutoscaler/api-router-hpa"]["spec"]["scaleTargetRef"].update(name="x"),
        "scales x",
        id="autoscaler",
    ),
    pytest.param(lambda m: container(m)["livenessProbe"]["httpGet"].update(port="web"), "probes web", id="probe port"),
    pytest.param(
        lambda m: container(m)["ports"][0].update(name="toolongforanyport"), "toolongforanyport", id="port name"
    ),
    pytest.param(lambda m: m[f"Service/{APP}"]["spec"]["ports"][0].update(targetPort=1), "leads to 1", id="target"),
    pytest.param(
        lambda m: m["NetworkPolicy/api-router-network-policy"]["spec"]["ingress"][0]["ports"][0].update(port=1),
        "opens 1",
        id="policy port",
    ),
    pytest.param(
        lambda m: m[f"ServiceMonitor/{APP}"]["spec"]["endpoints"][0].update(port="x"), "monitors 1", id="monitor port"
    ),
    pytest.param(
        lambda m: m[f"ServiceMonitor/{APP}"]["spec"]["selector"]["matchLabels"].popitem(), "monitors 2", id="monitor"
    ),
    pytest.param(
        lambda m: m["Ingress/api-router-ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
            name="x"
        ),
        "leads to x:8080",
        id="route",
    ),
    pytest.param(lambda m: pod(m)["volumes"].pop(), "declares", id="volume that is not declared"),
    pytest.param(lambda m: container(m)["volumeMounts"].pop(), "declares", id="volume that is not mounted"),
    pytest.param(lambda m: container(m)["volumeMounts"][0].update(subPath="x"), "subPath", id="subPath"),
    pytest.param(lambda m: container(m)["volumeMounts"][0].update(mountPath="/tmp"), "twice at one path", id="path"),
    pytest.param(lambda m: container(m).update(env=[{"name": "A"}, {"name": "A"}]), "variable", id="variable twice"),
    pytest.param(
        lambda m: pod(m).update(serviceAccountName="x"), "ServiceAccount/api-router-service: nobody", id="unused"
    ),
    pytest.param(lambda m: m.update({"Namespace/system": m.pop("Namespace/system")}), "not first", id="order"),
    pytest.param(
        lambda m: m.update({"Secret/api-router-keys": m.pop("Secret/api-router-keys")}), "comes before", id="use first"
    ),
    pytest.param(
        lambda m: container(m)["resources"]["limits"].update(cpu="1000m"), "quantity 1000m", id="spelling of a quantity"
    ),
    pytest.param(lambda m: container(m)["resources"]["limits"].update(cpu="100m"), "asks for more cpu", id="limit"),
    pytest.param(lambda m: pod(m).update(hostNetwork=True), "hostNetwork", id="host network"),
    pytest.param(
        lambda m: pod(m)["volumes"][0].update(hostPath={"path": "/"}), "volume config", id="a volume of the host"
    ),
    pytest.param(lambda m: pod(m)["securityContext"].pop("seccompProfile"), "seccompProfile", id="seccomp"),
    pytest.param(lambda m: pod(m)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot", id="root allowed"),
    pytest.param(lambda m: pod(m)["securityContext"].update(runAsUser=0), "runAsUser", id="root"),
    pytest.param(
        lambda m: container(m)["securityContext"].update(allowPrivilegeEscalation=True),
        "allowPrivilegeEscalation",
        id="escalation",
    ),
    pytest.param(
        lambda m: container(m)["securityContext"]["capabilities"].update(drop=[]), "capabilities.drop", id="rights"
    ),
    pytest.param(
        lambda m: container(m)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "capabilities.add",
        id="more rights",
    ),
    pytest.param(lambda m: container(m)["ports"][0].update(hostPort=80), "hostPort", id="port of the host"),
]


@pytest.mark.parametrize(("broken", "said"), BROKEN)
def test_broken_rendering_is_found(broken: Callable[[Made], object], said: str) -> None:
    """Each rule has a broken example."""
    made = copy.deepcopy(objects_of(TEXT))
    assert checks.findings(list(made.values())) == []
    broken(made)
    assert [found for found in checks.findings(list(made.values())) if said in found] != []


def test_missing_object_is_dangling() -> None:
    """A rendering without its ConfigMap refers to one that must exist."""
    made = objects_of(MINIMAL)
    before = checks.dangling(list(made.values()))
    without("ConfigMap/")(made)
    assert len(checks.dangling(list(made.values())) - before) == 1


def test_a_duplicate_key_is_found() -> None:
    """PyYAML itself takes the last of two."""
    with pytest.raises(ValueError, match="twice"):
        checks.load_strictly("a: 1\nb: {c: 1, c: 2}\n")
