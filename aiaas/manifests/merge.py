"""Strategic merge of a patch into an object, as `kubectl patch` and kustomize do it. Pure.

Mappings merge, null removes a field, and other values replace. A list with a merge key (MERGE_KEYS) merges by it: an
item with a known key changes that item, another one is added in front. All other lists are replaced. `$patch: delete`
removes the mapping or the item that it stands in; `$patch: replace` drops the earlier content of a mapping, or alone in
an item that of the list. The other directives of Kubernetes (`$setElementOrder`, `$retainKeys`,
`$deleteFromPrimitiveList`) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# The lists that merge, by kind and name; a test compares them with Kubernetes' own schemas (x-kubernetes-patch-*).
# Custom resources have none.
MERGE_KEYS: Final[Mapping[str, Mapping[str, str]]] = {
    "Deployment": {
        **dict.fromkeys(("containers", "initContainers", "ephemeralContainers", "env", "volumes"), "name"),
        **dict.fromkeys(("imagePullSecrets", "resourceClaims", "schedulingGates", "evictionResponders"), "name"),
        "ports": "containerPort",
        "volumeMounts": "mountPath",
        "volumeDevices": "devicePath",
        "hostAliases": "ip",
        "topologySpreadConstraints": "topologyKey",
    },
    "Service": {"ports": "port"},
    "ServiceAccount": {"secrets": "name"},
}
DIRECTIVE: Final = "$patch"


class MergeFault(Exception):
    """A patch that cannot be merged; the message says where and why."""


def merge(made: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the object with the patch in it; None if the patch deletes it. Raises MergeFault."""
    return _mapping(made, patch, MERGE_KEYS.get(made["kind"], {}), "")


def _mapping(
    old: Mapping[str, Any], patch: Mapping[str, Any], keys: Mapping[str, str], where: str
) -> dict[str, Any] | None:
    for name in patch:
        if name.startswith("$") and name != DIRECTIVE:
            raise MergeFault(f"{where}{name}: this directive is not supported; write $patch: delete or replace")
    directive = patch.get(DIRECTIVE, "merge")
    if directive == "delete":
        return None
    if directive not in ("merge", "replace"):
        raise MergeFault(f"{where}{DIRECTIVE}: must be delete or replace, not {str(directive)[:40]!r}")
    result = dict(old) if directive == "merge" else {}
    for name, value in patch.items():
        if name == DIRECTIVE:
            continue
        merged = _value(result.get(name), value, keys, f"{where}{name}", keys.get(name))
        if merged is None:
            result.pop(name, None)
        else:
            result[name] = merged
    return result


def _value(old: Any, value: Any, keys: Mapping[str, str], where: str, key: str | None) -> Any:
    """The merged value of a field; None if it goes."""
    if isinstance(value, Mapping):
        return _mapping(old if isinstance(old, Mapping) else {}, value, keys, f"{where}.")
    if not isinstance(value, list):
        return value
    if {DIRECTIVE: "replace"} in value:
        return [_item(item, keys, where) for item in value if item != {DIRECTIVE: "replace"}]
    if key is None:
        return [_item(item, keys, where) for item in value]
    return _merged_list(old if isinstance(old, list) else [], value, keys, where, key)


def _item(item: Any, keys: Mapping[str, str], where: str) -> Any:
    """An item of a list that is replaced."""
    made = _value(None, item, keys, f"{where}[]", None)
    if made is None:
        raise MergeFault(
            f"{where}: this list is replaced as a whole, so nothing can be deleted from it; write the rest"
        )
    return made


def _merged_list(old: list[Any], patch: list[Any], keys: Mapping[str, str], where: str, key: str) -> list[Any]:
    """The items of both lists, those of the patch in its order. As Kubernetes orders them: each other item keeps its
    place before or after the known items of the patch, and new items come first."""
    for item in patch:
        if not isinstance(item, Mapping) or not isinstance(item.get(key), str | int):
            raise MergeFault(f"{where}: each item needs {key}, by which this list merges")
        if item.get(DIRECTIVE) == "replace":
            raise MergeFault(
                f"{where}: $patch: replace stands alone in a list: `- $patch: replace`, then all its items"
            )
    places = {item[key]: index for index, item in enumerate(old) if isinstance(item, Mapping) and key in item}
    named = [item[key] for item in patch]
    if twice := [name for name in named if named.count(name) > 1]:
        raise MergeFault(f"{where}: {key} {twice[0]} is there twice; write it once")
    rest = [index for index, item in enumerate(old) if not isinstance(item, Mapping) or item.get(key) not in named]
    result: list[Any] = []
    for item in patch:
        place = places.get(item[key], -1)
        merged = _mapping({} if place < 0 else old[place], item, keys, f"{where}[{key}={item[key]}].")
        if merged is not None:
            result += [old[index] for index in rest if index < place]
            rest = [index for index in rest if index >= place]
            result.append(merged)
    return [*result, *(old[index] for index in rest)]
