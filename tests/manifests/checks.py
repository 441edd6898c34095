"""Faults that schemas cannot see in a set of objects that are applied together, each rule a function to findings.

A finding is one line: `Kind/name: what`. Nothing here knows aiaas; the rules are those of Kubernetes:
names and labels (docs/concepts/overview/working-with-objects), Pod Security Standards `restricted`
(docs/concepts/security/pod-security-standards), and that everything referred to is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Final

import yaml

Object = dict[str, Any]
Rule = Callable[[list[Object]], Iterator[str]]

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123
SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1035
QUALIFIED = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")  # IANA_SVC_NAME
QUANTITY = re.compile(r"([1-9][0-9]*|0)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
WORKLOADS: Final = ("Deployment",)
CLUSTER_WIDE: Final = ("Namespace",)
# Volume types that Pod Security `restricted` allows.
VOLUMES: Final = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
SIZES: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a mapping that has a key twice; PyYAML silently takes the last."""


def _mapping(loader: _NoDuplicates, node: yaml.MappingNode) -> Object:
    keys = [loader.construct_object(key) for key, _ in node.value]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"{sorted(twice)} twice at {node.start_mark}")
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


_NoDuplicates.add_constructor("tag:yaml.org,2002:map", _mapping)


def load_strictly(text: str) -> list[Object]:
    """The documents of a stream. Raises ValueError for a duplicate key."""
    return list(yaml.load_all(text, Loader=_NoDuplicates))


def reference(made: Object) -> str:
    """`Kind/name`."""
    return f"{made['kind']}/{made['metadata']['name']}"


def findings(objects: list[Object]) -> list[str]:
    """The findings of every rule but `dangling`."""
    return [found for rule in RULES for found in rule(objects)]


# -- parts ------------------------------------------------------------------------------------------------------------


def templates(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each workload with its pod template."""
    for made in objects:
        if made["kind"] in WORKLOADS:
            yield made, made["spec"]["template"]


def selected(objects: list[Object], labels: dict[str, str]) -> list[tuple[Object, Object]]:
    """The workloads whose pods a selector matches."""
    return [
        (made, template)
        for made, template in templates(objects)
        if labels.items() <= template["metadata"]["labels"].items()
    ]


def container_ports(template: Object) -> dict[str | int, int]:
    """Each port by its name and by its number."""
    ports = [port for container in template["spec"]["containers"] for port in container.get("ports", ())]
    return {port["name"]: port["containerPort"] for port in ports} | {
        p["containerPort"]: p["containerPort"] for p in ports
    }


def values_at(value: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, anywhere."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from values_at(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from values_at(inner, key)


# -- rules ------------------------------------------------------------------------------------------------------------


def names(objects: list[Object]) -> Iterator[str]:
    """Names are unique and short enough; everything but a Namespace has one namespace, the same."""
    seen: set[tuple[str, str]] = set()
    for made in objects:
        kind, name = made["kind"], made["metadata"]["name"]
        pattern = SERVICE_NAME if kind == "Service" else LABEL
        if not pattern.fullmatch(name):
            yield f"{kind}/{name}: not a name for its kind"
        if (kind, name) in seen:
            yield f"{kind}/{name}: there twice"
        seen.add((kind, name))
        if ("namespace" in made["metadata"]) == (kind in CLUSTER_WIDE):
            yield f"{kind}/{name}: a namespace where none belongs, or none where one does"
    spaces = {made["metadata"].get("namespace") for made in objects if made["kind"] not in CLUSTER_WIDE}
    if len(spaces) > 1:
        yield f"several namespaces: {sorted(map(str, spaces))}"


def labels(objects: list[Object]) -> Iterator[str]:
    """Labels and annotations are within their limits."""
    for made in objects:
        for metadata in (made["metadata"], *(t["metadata"] for m, t in templates([made]))):
            for key, value in metadata.get("labels", {}).items():
                if not QUALIFIED.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
                    yield f"{reference(made)}: label {key}={value}"
            for key, value in metadata.get("annotations", {}).items():
                if not QUALIFIED.fullmatch(key) or not isinstance(value, str):
                    yield f"{reference(made)}: annotation {key}={value!r}"


def selectors(objects: list[Object]) -> Iterator[str]:
    """Every selector matches the pods of exactly one workload: its own, where it has one."""
    for made in objects:
        spec = made.get("spec", {})
        if made["kind"] in WORKLOADS:
            wanted = [spec["selector"]["matchLabels"], *(s["matchLabels"] for s in values_at(spec, "labelSelector"))]
            if any([made] != [owner for owner, _ in selected(objects, selector)] for selector in wanted):
                yield f"{reference(made)}: a selector that does not match its own pods only"
            continue
        pods = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(made["kind"])
        if pods is not None and len(selected(objects, pods(spec))) != 1:
            yield f"{reference(made)}: selects the pods of {len(selected(objects, pods(spec)))} workloads"
        if made["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            if f"{target['kind']}/{target['name']}" not in map(reference, objects):
                yield f"{reference(made)}: scales {target['name']}, which is not there"


def ports(objects: list[Object]) -> Iterator[str]:
    """Ports and their names resolve: probes, Services, monitors, policies, routes."""
    for made, template in templates(objects):
        known = container_ports(template)
        for port in [probe["port"] for probe in values_at(template, "httpGet")]:
            if port not in known:
                yield f"{reference(made)}: probes {port}, which no container has"
        for name in (name for name in known if isinstance(name, str)):
            if not PORT_NAME.fullmatch(name):
                yield f"{reference(made)}: port name {name}"
    yield from _service_ports(objects)
    yield from _policy_ports(objects)
    yield from _monitored_ports(objects)
    yield from _routes(objects)


def _of_kind(objects: list[Object], kind: str) -> Iterator[tuple[Object, Object]]:
    return ((made, made["spec"]) for made in objects if made["kind"] == kind)


def _service_ports(objects: list[Object]) -> Iterator[str]:
    for made, spec in _of_kind(objects, "Service"):
        known = [container_ports(template) for _, template in selected(objects, spec["selector"])]
        for port in spec["ports"]:
            if not any(port["targetPort"] in ports_of_one for ports_of_one in known):
                yield f"{reference(made)}: leads to {port['targetPort']}, which no container has"


def _policy_ports(objects: list[Object]) -> Iterator[str]:
    for made, spec in _of_kind(objects, "NetworkPolicy"):
        known = [container_ports(template) for _, template in selected(objects, spec["podSelector"]["matchLabels"])]
        for port in (port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]):
            if not any(port in ports_of_one for ports_of_one in known):
                yield f"{reference(made)}: opens {port}, which no container has"


def _monitored_ports(objects: list[Object]) -> Iterator[str]:
    for made, spec in _of_kind(objects, "ServiceMonitor"):
        wanted = spec["selector"]["matchLabels"].items()
        found = [each for each, _ in _of_kind(objects, "Service") if wanted <= each["metadata"]["labels"].items()]
        names = {port["name"] for each in found for port in each["spec"]["ports"]}
        if len(found) != 1 or not {endpoint["port"] for endpoint in spec["endpoints"]} <= names:
            yield f"{reference(made)}: monitors {len(found)} Services, or a port that they have not"


def _routes(objects: list[Object]) -> Iterator[str]:
    services = {
        (made["metadata"]["name"], port["port"])
        for made in objects
        if made["kind"] == "Service"
        for port in made["spec"]["ports"]
    }
    for made in objects:
        used: list[tuple[str, int]] = []
        if made["kind"] == "Ingress":
            used = [(each["name"], each["port"]["number"]) for each in values_at(made["spec"], "service")]
        elif made["kind"] == "HTTPRoute":
            used = [(ref["name"], ref["port"]) for refs in values_at(made["spec"], "backendRefs") for ref in refs]
        for name, port in used:
            if (name, port) not in services:
                yield f"{reference(made)}: leads to {name}:{port}, which is not there"


def volumes(objects: list[Object]) -> Iterator[str]:
    """Mounted volumes are declared, declared ones are mounted, and never by subPath; variables are there once."""
    for made, template in templates(objects):
        declared = [volume["name"] for volume in template["spec"].get("volumes", ())]
        mounts = [mount for container in template["spec"]["containers"] for mount in container.get("volumeMounts", ())]
        mounted = [mount["name"] for mount in mounts]
        if sorted(declared) != sorted(set(mounted)) or len(set(declared)) != len(declared):
            yield f"{reference(made)}: declares {declared}, mounts {mounted}"
        if any("subPath" in mount for mount in mounts):
            yield f"{reference(made)}: mounts by subPath, which is never updated"
        paths = [mount["mountPath"] for mount in mounts]
        if len(set(paths)) != len(paths):
            yield f"{reference(made)}: mounts twice at one path"
        for container in template["spec"]["containers"]:
            variables = [entry["name"] for entry in container.get("env", ())]
            if len(set(variables)) != len(variables):
                yield f"{reference(made)}: a variable is there twice"


def used(objects: list[Object]) -> Iterator[tuple[str, str]]:
    """(who, `Kind/name` that it refers to)."""
    for made, template in templates(objects):
        spec = template["spec"]
        if "serviceAccountName" in spec:
            yield reference(made), f"ServiceAccount/{spec['serviceAccountName']}"
        for kind, keys in (("Secret", ("secretKeyRef",)), ("ConfigMap", ("configMap", "configMapKeyRef"))):
            for key in keys:
                for source in values_at(spec, key):
                    yield reference(made), f"{kind}/{source['name']}"
        for source in values_at(spec, "secret"):
            yield reference(made), f"Secret/{source['secretName']}"
        for name in values_at(spec, "claimName"):
            yield reference(made), f"PersistentVolumeClaim/{name}"
        for secret in spec.get("imagePullSecrets", ()):
            yield reference(made), f"Secret/{secret['name']}"
    for made in objects:
        if made["kind"] == "Ingress":
            for secret in values_at(made["spec"], "secretName"):
                yield reference(made), f"Secret/{secret}"


def dangling(objects: list[Object]) -> set[str]:
    """The referenced objects that have to be there before."""
    return {target for _, target in used(objects)} - set(map(reference, objects))


def unused(objects: list[Object]) -> Iterator[str]:
    """Nothing is rendered that nobody refers to; a dashboard is found by its label."""
    targets = {target for _, target in used(objects)}
    for made in objects:
        waits_to_be_used = made["kind"] in ("ConfigMap", "Secret", "PersistentVolumeClaim", "ServiceAccount")
        if (
            waits_to_be_used
            and reference(made) not in targets
            and "grafana_dashboard" not in made["metadata"]["labels"]
        ):
            yield f"{reference(made)}: nobody uses it"


def order(objects: list[Object]) -> Iterator[str]:
    """Referenced objects come first."""
    place = {reference(made): index for index, made in enumerate(objects)}
    for who, target in used(objects):
        if place.get(target, -1) > place[who]:
            yield f"{who}: comes before {target}"
    if any(made["kind"] == "Namespace" for made in objects[1:]):
        yield "the Namespace is not first"


def amount(text: str) -> Fraction:
    """A quantity as a number."""
    match = QUANTITY.fullmatch(text)
    assert match is not None, text
    return Fraction(int(match[1])) * (Fraction(1, 1000) if match[2] == "m" else SIZES.get(match[2] or "", 1))


def quantities(objects: list[Object]) -> Iterator[str]:
    """Quantities are valid, written as the API server writes them, and no request is above its limit."""
    for made in objects:
        sizes = [size for empty in values_at(made, "emptyDir") if (size := empty.get("sizeLimit"))]
        for each in values_at(made, "resources"):
            both = [each.get("requests", {}), each.get("limits", {})] if isinstance(each, dict) else []
            sizes += [size for amounts in both for size in amounts.values()]
            for name in set.intersection(*map(set, both)) if both else ():
                if amount(both[0][name]) > amount(both[1][name]):
                    yield f"{reference(made)}: asks for more {name} than it may have"
        for size in sizes:
            match = QUANTITY.fullmatch(size)
            if match is None or (match[2] == "m" and int(match[1]) % 1000 == 0):
                yield f"{reference(made)}: quantity {size}"


def restricted(objects: list[Object]) -> Iterator[str]:
    """Pod Security Standards, profile `restricted` (which holds `baseline`)."""
    for made, template in templates(objects):
        spec = template["spec"]
        pod = spec.get("securityContext", {})
        wrong = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
        wrong += [
            f"volume {volume['name']}" for volume in spec.get("volumes", ()) if not set(volume) - {"name"} <= VOLUMES
        ]
        wrong += ["sysctls"] if pod.get("sysctls") else []
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            own = container.get("securityContext", {})
            both = pod | own
            capabilities = own.get("capabilities", {})
            conditions = {
                "privileged": not own.get("privileged", False),
                "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
                "capabilities.drop": "ALL" in capabilities.get("drop", ()),
                "capabilities.add": set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
                "runAsNonRoot": both.get("runAsNonRoot") is True,
                "runAsUser": both.get("runAsUser") != 0,
                "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
                "procMount": own.get("procMount", "Default") == "Default",
                "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
                "probe host": not any(get.get("host") for get in values_at(container, "httpGet")),
            }
            wrong += [name for name, holds in conditions.items() if not holds]
        yield from (f"{reference(made)}: {what}" for what in wrong)


RULES: Final[tuple[Rule, ...]] = (*(names, labels, selectors, ports, volumes, unused, order, quantities, restricted),)
