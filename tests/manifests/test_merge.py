"""Strategic merge, with the cases of Kubernetes' own documentation, and its table against Kubernetes' own schemas."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.manifests.merge import MERGE_KEYS, MergeFault, merge

POD: dict[str, Any] = {
    "kind": "Deployment",
    "spec": {
        "template": {
            "metadata": {"labels": {"app": "a", "team": "b"}},
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": "i:1",
                        "args": ["serve"],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "ports": [{"containerPort": 80, "name": "http"}],
                    }
                ],
                "tolerations": [{"key": "a", "operator": "Exists"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        }
    },
}
ROOTS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "Ingress": "io.k8s.api.networking.v1.Ingress",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "HorizontalPodAutoscaler": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
}


def pod(patch: dict[str, Any]) -> Any:
    """The pod after a patch of it."""
    made = merge(POD, {"spec": {"template": {"spec": patch}}})
    assert made is not None
    return made["spec"]["template"]["spec"]


def container(patch: dict[str, Any]) -> Any:
    """The container `main` after a patch of it."""
    return pod({"containers": [{"name": "main"} | patch]})["containers"][0]


def test_mappings_merge_and_null_removes() -> None:
    """Fields that the patch does not name stay."""
    made = merge(POD, {"spec": {"template": {"metadata": {"labels": {"team": None, "x": "y"}}}}})
    assert made is not None
    assert made["spec"]["template"]["metadata"] == {"labels": {"app": "a", "x": "y"}}
    assert made["spec"]["template"]["spec"] == POD["spec"]["template"]["spec"]


def test_lists_with_a_key_merge_by_it() -> None:
    """A known item is changed where it stands, an unknown one comes in front of the rest (kubectl patch --local)."""
    assert container({"env": [{"name": "A", "value": "9"}, {"name": "C", "value": "3"}]})["env"] == [
        {"name": "A", "value": "9"},
        {"name": "C", "value": "3"},
        {"name": "B", "value": "2"},
    ]
    assert container({"env": [{"name": "B", "value": "9"}, {"name": "C", "value": "3"}]})["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "9"},
        {"name": "C", "value": "3"},
    ]
    assert container({"env": [{"name": "B", "value": "9"}, {"name": "A", "$patch": "delete"}, {"name": "C"}]})[
        "env"
    ] == [
        {"name": "B", "value": "9"},
        {"name": "C"},
    ]
    assert [each["name"] for each in container({"env": [{"name": "B"}, {"name": "A"}]})["env"]] == ["B", "A"]
    assert container({"ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 81}]})["ports"] == [
        {"containerPort": 80, "name": "web"},
        {"containerPort": 81},
    ]
    assert [each["name"] for each in pod({"containers": [{"name": "side", "image": "s:1"}]})["containers"]] == [
        "side",
        "main",
    ]


def test_other_lists_are_replaced() -> None:
    """Arguments, tolerations, and every list of a custom resource."""
    assert container({"args": ["x"]})["args"] == ["x"]
    assert pod({"tolerations": [{"key": "b"}]})["tolerations"] == [{"key": "b"}]
    custom = {"kind": "ServiceMonitor", "spec": {"endpoints": [{"port": "a"}], "volumes": [{"name": "v"}]}}
    made = merge(custom, {"spec": {"volumes": [{"name": "w"}]}})
    assert made == {"kind": "ServiceMonitor", "spec": {"endpoints": [{"port": "a"}], "volumes": [{"name": "w"}]}}


def test_directives_delete_and_replace() -> None:
    """A mapping, an item, a whole list, the whole object."""
    assert container({"env": [{"name": "A", "$patch": "delete"}]})["env"] == [{"name": "B", "value": "2"}]
    assert container({"env": [{"$patch": "replace"}, {"name": "Z", "value": "0"}]})["env"] == [
        {"name": "Z", "value": "0"}
    ]
    assert pod({"nodeSelector": {"$patch": "replace", "a": "b"}})["nodeSelector"] == {"a": "b"}
    assert "template" not in (merge(POD, {"spec": {"template": {"$patch": "delete"}}}) or {})["spec"]
    assert merge(POD, {"$patch": "delete"}) is None
    assert pod({"volumes": [{"name": "none", "$patch": "delete"}]})["volumes"] == [{"name": "v", "emptyDir": {}}]


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"spec": {"$retainKeys": ["a"]}}, "spec.$retainKeys: this directive is not supported"),
        ({"$patch": "remove"}, "$patch: must be delete or replace, not 'remove'"),
        ({"spec": {"volumes": [{"emptyDir": {}}]}}, "spec.volumes: each item needs name"),
        ({"spec": {"volumes": ["v"]}}, "spec.volumes: each item needs name"),
        ({"spec": {"volumes": [{"name": ["v"]}]}}, "spec.volumes: each item needs name"),
        ({"spec": {"volumes": [{"name": "v"}, {"name": "v"}]}}, "spec.volumes: name v is there twice"),
        ({"spec": {"volumes": [{"name": "v", "$patch": "replace"}]}}, "spec.volumes: $patch: replace stands alone"),
        ({"spec": {"args": [{"$patch": "delete"}]}}, "spec.args: this list is replaced as a whole"),
    ],
)
def test_an_unusable_patch_is_refused_with_its_place(patch: dict[str, Any], words: str) -> None:
    """The message names the field."""
    with pytest.raises(MergeFault) as fault:
        merge(POD, patch)
    assert str(fault.value).startswith(words)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["delete", "replace", "main", "v"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$patch", "name", "spec", "template", "containers", "volumes", "env", "args"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["spec", "metadata", "$patch", "kind"]), VALUES, max_size=3))
def test_any_patch_merges_or_is_refused(patch: dict[str, Any]) -> None:
    """The object itself is never changed, and a second merge of the same patch changes nothing more."""
    before = copy.deepcopy(POD)
    try:
        once = merge(POD, patch)
    except MergeFault:
        return
    finally:
        assert before == POD
    assert "$patch" not in json.dumps(once)
    if once is not None and once.get("kind") == "Deployment":
        assert merge(once, patch) == once


def merge_keys(kind: str) -> dict[str, str]:
    """The keys of the lists of a kind, by Kubernetes' own schemas; without status and metadata."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    newest = folder / f"v{kubernetes_validate.latest_version()}-local" / "_definitions.json"
    definitions = json.loads(newest.read_text(encoding="utf-8"))["$defs"]

    def walk(name: str, seen: frozenset[str]) -> Iterator[tuple[str, str]]:
        if name in seen or name.endswith(("Status", "ObjectMeta")):
            return
        for field, value in (definitions[name].get("properties") or {}).items():
            if key := value.get("x-kubernetes-patch-merge-key"):
                yield field, key
            for part in (value, value.get("items"), value.get("additionalProperties")):
                if isinstance(part, dict) and "$ref" in part:
                    yield from walk(part["$ref"].rpartition("/")[2], seen | {name})

    return dict(walk(ROOTS[kind], frozenset()))


@pytest.mark.parametrize("kind", ROOTS)
def test_lists_merge_by_the_keys_of_kubernetes(kind: str) -> None:
    """The table is complete for every kind that is rendered."""
    assert merge_keys(kind) == MERGE_KEYS.get(kind, {})
