"""Describe every section and field of the config in words: for docs/config.md and `aiaas explain`.

The words are the model's own: a field's sentence, its type and its default all come from the schema made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiaas.config.fields import fields_of
from aiaas.config.problem import dotted
from aiaas.config.restart import RESTARTS
from aiaas.config.schema import config_schema
from aiaas.units import DURATION_PATTERN, SIZE_PATTERN
from aiaas.yamltree import Path


@dataclass(frozen=True)
class FieldText:
    """A field in words. `type` and `default` are Markdown; `default` is empty where the field has none."""

    name: str
    type: str
    required: bool
    default: str
    text: str


@dataclass(frozen=True)
class SectionText:
    """A section in words. `path` has `*` for a name or an index; `name` is how a manual writes it (`models[]`)."""

    path: Path
    name: str
    text: str
    fields: tuple[FieldText, ...]


def described_sections() -> Iterator[SectionText]:
    """Yield all sections, the whole file first, each before those inside it."""
    schema = config_schema()
    yield from _section(schema, schema, ())


def _section(schema: dict[str, Any], section: dict[str, Any], path: Path) -> Iterator[SectionText]:
    fields = []
    inner: list[tuple[dict[str, Any], Path]] = []
    known = fields_of(path)
    for name, field in section["properties"].items():
        here = (*path, name)
        text = field.get("description") or " ".join((known[name].description or "").split())
        text += " A change needs a restart." if dotted(here) in RESTARTS else ""
        required = name in section.get("required", ())
        fields.append(FieldText(name, _type(field), required, "" if required else _default(field), text))
        for target, free in _references(field):
            inner.append((schema["$defs"][target], (*here, "*") if free else here))
    yield SectionText(path, _heading(path), section["description"], tuple(fields))
    for target_schema, inner_path in inner:
        yield from _section(schema, target_schema, inner_path)


def _heading(path: Path) -> str:
    names = {"backends": "NAME", "env": "NAME", "models": "0", "urls": "0"}
    parts = [names.get(str(path[i - 1]), "*") if part == "*" else str(part) for i, part in enumerate(path)]
    return ".".join(parts).replace(".0", "[]")


def _default(field: dict[str, Any]) -> str:
    if "default" in field:
        value = field["default"]
        return f"`{_LITERALS.get(repr(value)) or (_list(value) if isinstance(value, list) else value)}`"
    return "empty" if field.get("type") == "object" else ""


_LITERALS: Final = {"None": "null", "True": "true", "False": "false"}


def _list(values: list[Any]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"


_PATTERN_WORDS: Final = {DURATION_PATTERN: "duration", SIZE_PATTERN: "size"}


def _type(field: dict[str, Any]) -> str:
    """Return a field's type in words, from its schema."""
    if "$ref" in field:
        return "section"
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(dict.fromkeys(_type(option) for option in field.get("anyOf", field.get("oneOf", []))))
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type")
    if kind == "integer":
        low, high = field.get("minimum"), field.get("maximum")
        if low is not None and low == high:
            return f"`{low}`"
        return "whole number" + (f" from {low} to {high}" if high is not None else f", at least {low}")
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "object":
        values = next(iter(field.get("patternProperties", {}).values()), field.get("additionalProperties"))
        return f"mapping of names to {_type(values)}" if isinstance(values, dict) else "mapping"
    words = {"boolean": "`true` or `false`", "null": "null", "number": "number", "string": "text"}
    return _PATTERN_WORDS.get(field.get("pattern", ""), words.get(str(kind), "any value"))


def _references(field: dict[str, Any], free: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the sections inside a field, and whether a name or an index comes before each in a path."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], free
    for option in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _references(option, free)
    if "items" in field:
        yield from _references(field["items"], True)
    for value in field.get("patternProperties", {}).values():
        yield from _references(value, True)
