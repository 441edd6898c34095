"""The JSON Schema for editors."""

from __future__ import annotations

import re

from aiaas.config.schema import config_schema


def test_the_schema_refuses_unknown_fields_everywhere() -> None:
    """Each section is closed, as `aiaas validate` closes it."""
    schema = config_schema()
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False


def test_durations_sizes_and_bounds_are_as_they_are_written() -> None:
    """Defaults are text with a unit, patterns accept them, and whole numbers have their bounds."""
    schema = config_schema()
    server = schema["$defs"]["Server"]["properties"]
    assert server["max_body_size"]["default"] == "10MiB"
    assert re.search(server["max_body_size"]["pattern"], "10MiB")
    assert schema["$defs"]["Backend"]["properties"]["timeout"]["default"] == "2m"
    assert (server["port"]["minimum"], server["port"]["maximum"]) == (1, 65535)
    assert schema["required"] == ["backends"]


def test_a_model_may_be_a_name_or_a_mapping() -> None:
    """Both ways to write a model are in the schema."""
    items = config_schema()["$defs"]["Backend"]["properties"]["models"]["items"]["oneOf"]
    assert items[0]["type"] == "string"
    assert items[1] == {"$ref": "#/$defs/Model"}
