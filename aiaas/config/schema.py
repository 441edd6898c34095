"""The config's JSON Schema, for editors: completion, and a red line under what `aiaas validate` would refuse."""

from __future__ import annotations

from typing import Any, Final

from aiaas.config.model import Config
from aiaas.units import DURATION_PATTERN, SIZE_PATTERN, format_duration, format_size

SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a config file, made from the model."""
    schema = Config.model_json_schema()
    definitions = schema.pop("$defs")
    _mend(schema)
    for definition in definitions.values():
        _mend(definition)
    return {"$schema": SCHEMA_DIALECT, "title": "aiaas config"} | schema | {"$defs": definitions}


def _mend(section: dict[str, Any]) -> None:
    """Mend what pydantic leaves behind where a validator of ours stands before the type.

    That is `ge` for `minimum`, and bare numbers for durations and sizes. Its made-up titles go, since `Max Body Size`
    says no more than `max_body_size`, and so do the source's line breaks.
    """
    for field in section.get("properties", {}).values():
        _mend_node(field)
    section["description"] = " ".join(section.get("description", "").split())
    section.pop("title", None)


def _mend_node(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _mend_node(item)
    if not isinstance(node, dict):
        return
    node.pop("title", None)
    bounds = {"minimum": node.pop("ge", None), "maximum": node.pop("le", None)}
    if node.get("type") == "integer":
        node |= {name: bound for name, bound in bounds.items() if bound is not None}
    if "patternProperties" in node:
        node["additionalProperties"] = False
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if node.get("pattern") == DURATION_PATTERN and "default" in node:
        node["default"] = format_duration(node["default"])
    if node.get("pattern") == SIZE_PATTERN and "default" in node:
        node["default"] = format_size(node["default"])
    if "$ref" in node:
        node.pop("default", None)  # the section's own fields have theirs
    for item in list(node.values()):
        _mend_node(item)
