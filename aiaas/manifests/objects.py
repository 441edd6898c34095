"""What every object shares: its labels, its head, the hardening of its pods, and quantities as the API server writes
them.

Rules:
  1. An object is a plain dict in the order in which people write it.
  2. Nothing stands in it that the API server would write otherwise (`1000m`), drop (null) or fill in with a different
     value, so that a second apply changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from aiaas.config.kubernetes import ResourceAmounts, Resources
from aiaas.plan.kubernetes import KubernetesPlan

Object = dict[str, Any]

UID: Final = 10001  # of the image's user; any but 0 would do, and the files of mounts belong to its group
READ_BY_GROUP: Final = 0o440

_UNITS: Final = {"k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY: Final = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def labels_of(plan: KubernetesPlan, app: str) -> dict[str, str]:
    """The labels of every object that belongs to `app`: what the operator wants, and ours, which selectors rely on."""
    return plan.settings.labels | {
        "app": app,
        "app.kubernetes.io/name": "aiaas",
        "app.kubernetes.io/instance": plan.settings.name,
        "app.kubernetes.io/managed-by": "aiaas",
    }


def selector_of(app: str) -> dict[str, str]:
    """What tells the pods of `app` from all others; a Deployment's selector can never be changed."""
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


def pod_security() -> Object:
    """A pod's security context under Pod Security `restricted`."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, read_only: bool) -> Object:
    """A container's security context under Pod Security `restricted`."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        "capabilities": {"drop": ["ALL"]},
    }


def from_secret(plan: KubernetesPlan, name: str, *, variable: str | None = None) -> Object:
    """An environment variable (`name`, or `variable`) whose value `kubernetes.env` says where to find."""
    reference = plan.settings.env[name]
    source = {"secretKeyRef": {"name": reference.secret, "key": reference.key}}
    return {"name": variable or name, "valueFrom": source}


def resources_of(resources: Resources) -> Object:
    """Requests and limits, without what is left out."""
    both = {"requests": amounts_of(resources.requests), "limits": amounts_of(resources.limits)}
    return {name: amounts for name, amounts in both.items() if amounts}


def amounts_of(amounts: ResourceAmounts) -> dict[str, str]:
    """Memory and CPU as the API server writes them."""
    given = {"memory": amounts.memory, "cpu": amounts.cpu}
    return {name: quantity(amount) for name, amount in given.items() if amount is not None}


def quantity(text: str) -> str:
    """A quantity in the API server's own spelling: `1000m` is `1`, `0.5` is `500m`, `1024Mi` is `1Gi`, `1500M` stays.

    Whole numbers with the largest suffix of their family that leaves one (apimachinery, resource.Quantity).
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
