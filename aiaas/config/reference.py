"""Generate the manual pages docs/config.md (from the model) and docs/problems.md (from the codes).

`python -m aiaas.config.reference docs` writes both; a test fails if a page is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiaas.config.codes import CODES
from aiaas.config.environment import OVERRIDES
from aiaas.config.fields import fields_of
from aiaas.config.problem import dotted
from aiaas.config.restart import RESTARTS
from aiaas.config.schema import config_schema
from aiaas.units import DURATION_PATTERN, SIZE_PATTERN
from aiaas.yamltree import Path as FieldPath

_INTRO = """# The config, field by field

One YAML file. `aiaas init` writes one to start from, `aiaas validate` checks it, `aiaas schema` prints its JSON Schema
for editors. This page is generated from the code (`python -m aiaas.config.reference docs`).

Unknown fields, duplicate keys and secrets in plain text are errors. A section that is left out, or has nothing below
it, has its defaults. Paths inside the file are relative to the file. aiaas also reads a Kubernetes ConfigMap that holds
the config as `config.yaml`. A running gateway loads a changed file ([reload.md](reload.md)); this page says which
fields need a restart.

- A **duration** has a unit: `500ms`, `45s`, `30m`, `2h`, `90d`, `2w`; only `0` needs no unit.
  The options of every command take the same units.
- A **size** has a unit, too: `512KiB`, `10MiB` (binary), `10MB` (decimal).
- **`${NAME}`** inside a value is replaced by the environment variable NAME; an unset one is an error.
  `$${NAME}` stands for the literal text. Inside `{...}` it needs quotes: `{password: "${NAME}"}`.
"""

_OVERRIDES_INTRO = """## Environment variables that override the file

A variable that is set to the empty text counts as unset. The `VLLM_` variables apply to the only backend, or to the
backend named `vllm`. `VLLM_BACKEND_URL` replaces any kind of address of that backend.

| variable | field |
| --- | --- |"""

_PROBLEMS_INTRO = """# Problems, by code

Problems that `aiaas validate` and `aiaas serve` report, as `file:line:column: error CODE field: message; allowed
values`. A config with warnings can be used, but `aiaas validate --strict` fails. This page is generated from the code
(`python -m aiaas.config.reference docs`).
"""


def config_reference() -> str:
    """Return the text of docs/config.md."""
    schema = config_schema()
    lines = [_INTRO, *_section(schema, schema, ()), _OVERRIDES_INTRO]
    lines += [f"| `{name}` | `{dotted(path)}` |" for name, path in OVERRIDES.items()]
    return "\n".join(lines) + "\n"


def problems_reference() -> str:
    """Return the text of docs/problems.md."""
    entries = [f"## {code}: {title}\n\n{what}\n" for code, (title, what) in CODES.items()]
    return "\n".join([_PROBLEMS_INTRO, *entries])


def _section(schema: dict[str, Any], section: dict[str, Any], path: FieldPath) -> Iterator[str]:
    """Yield the lines of one section: its heading, its fields, then the sections inside it."""
    yield f"## {f'`{_heading(path)}`' if path else 'Top level'}\n"
    yield f"{section['description']}\n"
    fields = fields_of(path)
    inner: list[tuple[dict[str, Any], FieldPath]] = []
    for name, field in section["properties"].items():
        here = (*path, name)
        required = "**required**" if name in section.get("required", ()) else _default(field)
        text = field.get("description") or " ".join((fields[name].description or "").split())
        text += " A change needs a restart." if dotted(here) in RESTARTS else ""
        yield f"- **`{name}`**: {'; '.join(part for part in (_type(field), required) if part)}.  \n  {text}"
        for target, free in _references(field):
            inner.append((schema["$defs"][target], (*here, "*") if free else here))
    yield ""
    for target_schema, inner_path in inner:
        yield from _section(schema, target_schema, inner_path)


def _heading(path: FieldPath) -> str:
    names = {"backends": "NAME", "env": "NAME", "models": "0"}
    parts = [names.get(str(path[i - 1]), "*") if part == "*" else str(part) for i, part in enumerate(path)]
    return ".".join(parts).replace(".0", "[]")


def _default(field: dict[str, Any]) -> str:
    if "default" in field:
        value = field["default"]
        return f"default `{_LITERALS.get(repr(value)) or (_list(value) if isinstance(value, list) else value)}`"
    return "default empty" if field.get("type") == "object" else ""


_LITERALS = {"None": "null", "True": "true", "False": "false"}


def _list(values: list[Any]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"


_PATTERN_WORDS = {DURATION_PATTERN: "duration", SIZE_PATTERN: "size"}


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


def main(folder: Path) -> None:
    """Write both pages into `folder`."""
    folder.joinpath("config.md").write_text(config_reference(), encoding="utf-8")
    folder.joinpath("problems.md").write_text(problems_reference(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
