"""Shared parts of the objects: labels, heads, hardening of pods, and quantities in the API server's spelling.

Rules:
  1. An object is a plain dict in the order in which people write it.
  2. An object never holds a value that the API server would write differently (`1000m`), drop (null) or replace by a
     default, so that a second apply changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from aiaas.config.kubernetes import ResourceAmounts, Resources
from aiaas.plan.kubernetes import KubernetesPlan

Object = dict[str, Any]

UID: Final = 10001  # the image's user, any except root; mounted files belong to the group of the same number
READ_BY_GROUP: Final = 0o440

_UNITS: Final = {"k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY: Final = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def labels_of(plan: KubernetesPlan, app: str) -> dict[str, str]:
    """The labels of every object of `app`: the operator's, then ours, on which selectors rely."""
    return plan.settings.labels | {
        "app": app,
        "app.kubernetes.io/name": "aiaas",
        "app.kubernetes.io/instance": plan.settings.name,
        "app.kubernetes.io/managed-by": "aiaas",
    }


def selector_of(app: str) -> dict[str, str]:
    """The label that selects the pods of `app`; a Deployment's selector can never be changed."""
    return {"app": app}


def head(
    plan: KubernetesPlan,
    api_version: str,
    kind: str,
    name: str,
    *,
    app: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """The head of a namespaced object."""
    metadata: Object = {
        "name": name,
        "namespace": plan.settings.namespace,
        "labels": labels_of(plan, app or plan.app),
    }
    if merged := plan.settings.annotations | dict(annotations or {}):
        metadata["annotations"] = merged
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def pod_security(plan: KubernetesPlan) -> Object:
    """A pod's security context under Pod Security `restricted`; on OpenShift without the ids that it assigns itself."""
    ids = {} if plan.settings.platform == "openshift" else dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), UID)
    return {"runAsNonRoot": True} | ids | {"seccompProfile": {"type": "RuntimeDefault"}}


def container_security(*, read_only: bool) -> Object:
    """A container's security context under Pod Security `restricted`."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        "capabilities": {"drop": ["ALL"]},
    }


def from_settings(plan: KubernetesPlan, name: str, *, variable: str | None = None) -> Object:
    """An environment variable (called `variable` or else `name`) with its value as `kubernetes.env` has it."""
    entry = plan.settings.env[name]
    if entry.value is not None:
        return {"name": variable or name, "value": entry.value.replace("$", "$$")}  # Kubernetes expands $(NAME)
    source = {"secretKeyRef": {"name": entry.secret, "key": entry.key}}
    return {"name": variable or name, "valueFrom": source}


def resources_of(resources: Resources) -> Object:
    """Requests and limits, without those that are not set."""
    both = {"requests": amounts_of(resources.requests), "limits": amounts_of(resources.limits)}
    return {name: amounts for name, amounts in both.items() if amounts}


def amounts_of(amounts: ResourceAmounts) -> dict[str, str]:
    """Memory and CPU in the API server's spelling."""
    given = {"memory": amounts.memory, "cpu": amounts.cpu}
    return {name: quantity(amount) for name, amount in given.items() if amount is not None}


def quantity(text: str) -> str:
    """A quantity in the API server's spelling: `1000m` is `1`, `0.5` is `500m`, `1024Mi` is `1Gi`, `1500M` stays.

    That is a whole number with the largest suffix of its family for which it stays whole (apimachinery,
    resource.Quantity).
    """
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", text)
    assert match is not None, text
    number, unit = Fraction(match[1]), match[2] or ""
    if unit in _BINARY:
        value, family = number * _BINARY[unit], _BINARY
    else:
        value, family = number * (Fraction(1, 1000) if unit == "m" else _UNITS.get(unit, 1)), _UNITS
    if value.denominator != 1:
        return f"{-(-value * 1000 // 1)}m"
    for suffix, size in reversed(family.items()):
        if value and value % size == 0:
            return f"{value // size}{suffix}"
    return str(value)
