"""`kubernetes.patches` and `kubernetes.extra`: the operator's changes of the rendered objects, and further ones. Pure.

A patch may change anything except what the gateway relies on: the probes, preStop and the time for it, the selectors,
the mounted config, keys and certificate. `taken_away` names what a patch took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiaas.config import codes
from aiaas.config.kubernetes import Patch
from aiaas.config.problem import Finding
from aiaas.manifests.merge import MergeFault, merge
from aiaas.manifests.objects import Object
from aiaas.plan.kubernetes import KubernetesPlan
from aiaas.yamltree import Path

_PATCHES: Final[Path] = ("kubernetes", "patches")
_EXTRA: Final[Path] = ("kubernetes", "extra")
_NEEDED_KINDS: Final = ("Deployment", "Service", "ServiceAccount", "ConfigMap", "Secret", "PersistentVolumeClaim")
# Fields that have to stay as they are, by kind.
_FIXED: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "Deployment": (("spec", "selector"),),
    "Service": (("spec", "selector"),),
    "ConfigMap": (("data",),),
    "Secret": (("data",), ("type",)),
    "NetworkPolicy": (("spec", "podSelector"), ("spec", "policyTypes")),
    "PodDisruptionBudget": (("spec", "selector"),),
    "HorizontalPodAutoscaler": (("spec", "scaleTargetRef"),),
}
_IDENTITY: Final[tuple[tuple[str, ...], ...]] = (
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
)


@dataclass(frozen=True, slots=True)
class Patched:
    """The objects after all patches, with the extra ones.

    touched   index of an object -> the field of the config that made or changed it last
    findings  patches and extra objects that cannot be used; the objects are then without them
    """

    objects: tuple[Object, ...]
    touched: dict[int, Path]
    findings: tuple[Finding, ...]


def patched(plan: KubernetesPlan, objects: Sequence[Object]) -> Patched:
    """Apply the operator's patches to the objects, and add the extra ones at their end."""
    settings = plan.settings
    made: list[tuple[Object, Path | None]] = [(each, None) for each in objects]
    findings: list[Finding] = []
    for index, patch in enumerate(settings.patches):
        made, faults = _apply(plan, made, patch, (*_PATCHES, index))
        findings += faults
    findings += _replicas(made)
    for index, extra in enumerate(settings.extra):
        at = (*_EXTRA, index)
        if (fault := _fault_of_extra(extra, made)) is not None:
            findings.append((codes.PATCH, "error", at, fault))
        else:
            made.append((extra, at))
    touched = {index: at for index, (_, at) in enumerate(made) if at is not None}
    return Patched(tuple(each for each, _ in made), touched, tuple(findings))


def _apply(
    plan: KubernetesPlan, made: list[tuple[Object, Path | None]], patch: Patch, at: Path
) -> tuple[list[tuple[Object, Path | None]], list[Finding]]:
    """The objects after one patch, and its faults."""
    result: list[tuple[Object, Path | None]] = []
    faults: list[str] = []
    matched = False
    for each, before in made:
        if each["kind"] != patch.kind or patch.name not in (None, each["metadata"]["name"], _stem(plan, each)):
            result.append((each, before))
            continue
        matched = True
        try:
            after = merge(each, patch.merge)
        except MergeFault as error:
            faults.append(str(error))
            break
        faults += [f"{each['kind']}/{each['metadata']['name']}: {fault}" for fault in taken_away(each, after)]
        result += [] if after is None else [(after, at)]
    if not matched:
        faults.append(f"nothing of kind {patch.kind} and that name is rendered; {_rendered(made, patch.kind)}")
    found: list[Finding] = [(codes.PATCH, "error", at, fault) for fault in faults]
    return (made if faults else result), found


def _stem(plan: KubernetesPlan, made: Object) -> str | None:
    """The name of the config's ConfigMap without the digest of its content."""
    return plan.named("config") if made["metadata"]["name"] == plan.config_name else None


def _rendered(made: Sequence[tuple[Object, Path | None]], kind: str) -> str:
    names = sorted(each["metadata"]["name"] for each, _ in made if each["kind"] == kind)
    kinds = sorted({each["kind"] for each, _ in made})
    return f"this kind has {', '.join(names)}" if names else f"the kinds are {', '.join(kinds)}"


def taken_away(before: Object, after: Object | None) -> Iterator[str]:
    """Yield what the gateway relies on and the patched object no longer has."""
    kind = before["kind"]
    if after is None:
        if kind in _NEEDED_KINDS:
            yield "cannot be deleted, since the gateway relies on it"
        return
    for path in _IDENTITY:
        if _at(after, path) != _at(before, path):
            yield f"{'.'.join(path)} cannot be changed by a patch; use the fields of the config"
    for path in _FIXED.get(kind, ()):
        if _at(after, path) != _at(before, path):
            yield f"{'.'.join(path)} has to stay as it is, since the gateway relies on it; use the fields of the config"
    if kind == "Deployment":
        yield from _lost_of_pod(before["spec"]["template"], _at(after, ("spec", "template")))


def _lost_of_pod(before: Object, after: Any) -> Iterator[str]:
    selector = before["metadata"]["labels"]["app"]
    if _at(after, ("metadata", "labels", "app")) != selector:
        yield f"spec.template.metadata.labels.app has to be {selector}, by which Services and policies select the pods"
    grace = before["spec"]["terminationGracePeriodSeconds"]
    if not _is_at_least(_at(after, ("spec", "terminationGracePeriodSeconds")), grace):
        yield f"terminationGracePeriodSeconds is too short for the drain, which needs {grace}; use server.drain_timeout"
    yield from _missing("volumes", before["spec"]["volumes"], _at(after, ("spec", "volumes")))
    container = before["spec"]["containers"][0]
    found = _named(_at(after, ("spec", "containers")), "name", container["name"])
    if found is None:
        yield f"the container {container['name']} cannot be removed"
        return
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if _at(found, (name, "httpGet")) != container[name]["httpGet"]:
            yield f"{name} has to ask {container[name]['httpGet']['path']}; only its numbers can be changed"
    least = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if not _is_at_least(_at(found, ("lifecycle", "preStop", "sleep", "seconds")), least):
        yield f"preStop has to sleep {least} s at least, so that every proxy hears of the pod's end"
    for name in ("command", "args"):
        written = found.get(name)
        if not isinstance(written, list) or written[: len(container[name])] != container[name]:
            yield f"{name} has to begin with {' '.join(container[name])}"
    yield from _missing("volumeMounts", container["volumeMounts"], found.get("volumeMounts"), key="mountPath")
    yield from _missing("ports", container["ports"], found.get("ports"))
    for each in container.get("env", ()):
        if _named(found.get("env"), "name", each["name"]) is None:
            yield f"env {each['name']} is used by the config and cannot be removed"


def _missing(field: str, before: list[Any], after: Any, *, key: str = "name") -> Iterator[str]:
    for each in before:
        if _named(after, key, each[key]) != each and each.get("name") not in ("tmp", "shm"):
            yield f"{field} {each[key]} has to stay as it is"


def _named(items: Any, key: str, value: Any) -> Any:
    """The item of a list with this value under `key`; None if it has none, or is not a list."""
    found = items if isinstance(items, list) else ()
    return next((item for item in found if isinstance(item, dict) and item.get(key) == value), None)


def _is_at_least(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _replicas(made: Sequence[tuple[Object, Path | None]]) -> Iterator[Finding]:
    """Report a Deployment with a number of its own, which each apply would set again."""
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each, _ in made if each["kind"] == "HorizontalPodAutoscaler"}
    for each, at in made:
        name = each["metadata"]["name"]
        if each["kind"] == "Deployment" and at is not None and name in scaled and "replicas" in each["spec"]:
            message = (
                f"Deployment/{name}: spec.replicas would reset the autoscaler at each apply; use kubernetes.replicas"
            )
            yield codes.PATCH, "error", at, message


def _fault_of_extra(extra: Object, made: Sequence[tuple[Object, Path | None]]) -> str | None:
    name = _at(extra, ("metadata", "name"))
    if not all(isinstance(each, str) and each for each in (extra.get("apiVersion"), extra.get("kind"), name)):
        return "needs apiVersion, kind and metadata.name"
    for each, _ in made:
        same = each["kind"] == extra["kind"] and each["metadata"]["name"] == name
        if same and each["metadata"].get("namespace") == _at(extra, ("metadata", "namespace")):
            return f"{extra['kind']}/{name} is rendered already; change it by kubernetes.patches"
    return None
