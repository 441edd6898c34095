"""The config's JSON Schema, for editors: they complete fields and mark values that `aiaas validate` would reject."""

from __future__ import annotations

from typing import Any, Final

from aiaas.config.model import Config
from aiaas.units import DURATION_PATTERN, SIZE_PATTERN, format_duration, format_size

SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a config file, made from the model."""
    schema = Config.model_json_schema()
    definitions = schema.pop("$defs")
    _mend(schema)
    for definition in definitions.values():
        _mend(definition)
    return {"$schema": SCHEMA_DIALECT, "title": "aiaas config"} | schema | {"$defs": definitions}


def _mend(section: dict[str, Any]) -> None:
    """Fix the schema of fields for which pydantic does not know our validators.

    It leaves `ge` instead of `minimum`, and bare numbers for durations and sizes. Remove its generated titles, since
    `Max Body Size` says no more than `max_body_size`, and the source's line breaks.
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
    patterns = {one.get("pattern") for one in (node, *node.get("anyOf", ()))}
    if DURATION_PATTERN in patterns and node.get("default") is not None:
        node["default"] = format_duration(node["default"])
    if SIZE_PATTERN in patterns and node.get("default") is not None:
        node["default"] = format_size(node["default"])
    if "$ref" in node:
        node.pop("default", None)  # the section's own fields have defaults
    for item in list(node.values()):
        _mend_node(item)
