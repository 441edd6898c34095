"""Patched and extra objects against Kubernetes' schemas."""

from __future__ import annotations

import sys

import pytest

from aiaas.cli.schemas import schema_faults
from aiaas.manifests.render import with_patches
from tests.manifests.rendering import KEYS, plan_of, with_kubernetes


def faults(**fields: str) -> list[str]:
    """The findings about a config's patches and extra objects."""
    made = with_patches(plan_of(with_kubernetes(**fields)), KEYS)
    return [f"{'.'.join(map(str, path))}: {message}" for _, _, path, message in schema_faults(made)]


def test_a_misspelt_field_is_refused_at_its_patch() -> None:
    """The API server would drop it, or refuse it, depending on how it is applied."""
    merge = "{spec: {template: {spec: {priorityClasName: high}}}}"
    [fault] = faults(patches=f"[{{kind: Deployment, merge: {merge}}}]")
    assert fault.startswith("kubernetes.patches.0: Deployment/api-router-service: Kubernetes 1.")
    assert "refuses spec.template.spec" in fault
    assert "priorityClasName" in fault


def test_an_extra_object_is_checked_and_a_custom_one_is_not() -> None:
    """The schema of a custom resource is in the cluster."""
    extra = "[{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: 3}"
    assert faults(extra=extra + "]")[0].startswith("kubernetes.extra.0: ConfigMap/a: Kubernetes 1.")
    assert faults(extra="[{apiVersion: example.com/v1, kind: Thing, metadata: {name: a}, spec: 3}]") == []


def test_right_patches_pass() -> None:
    """As the API server would take them."""
    assert faults(patches="[{kind: Deployment, merge: {spec: {template: {spec: {priorityClassName: high}}}}}]") == []


def test_without_the_schemas_there_is_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if there is anything to check."""
    monkeypatch.setitem(sys.modules, "kubernetes_validate", None)
    assert faults() == []
    assert capsys.readouterr().err == ""
    assert faults(patches="[{kind: Service, merge: {speck: 3}}]") == []
    assert "pip install 'aiaas[schemas]'" in capsys.readouterr().err
