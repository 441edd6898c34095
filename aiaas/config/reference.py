"""Generate the manual pages docs/config.md (from the model) and docs/problems.md (from the codes).

`python -m aiaas.config.reference docs` writes both; a test fails if a page is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from aiaas.config.code_texts import CODES
from aiaas.config.describe import FieldText, SectionText, described_sections
from aiaas.config.environment import OVERRIDES
from aiaas.config.problem import dotted

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
    sections = (line for section in described_sections() for line in _section_lines(section))
    lines = [_INTRO, *sections, _OVERRIDES_INTRO]
    lines += [f"| `{name}` | `{dotted(path)}` |" for name, path in OVERRIDES.items()]
    return "\n".join(lines) + "\n"


def problems_reference() -> str:
    """Return the text of docs/problems.md."""
    entries = [f"## {code}: {title}\n\n{what}\n" for code, (title, what) in CODES.items()]
    return "\n".join([_PROBLEMS_INTRO, *entries])


def _section_lines(section: SectionText) -> Iterator[str]:
    """Yield the lines of one section: its heading, its text, then its fields."""
    yield f"## {f'`{section.name}`' if section.name else 'Top level'}\n"
    yield f"{section.text}\n"
    for field in section.fields:
        yield f"- **`{field.name}`**: {_facts(field)}.  \n  {field.text}"
    yield ""


def _facts(field: FieldText) -> str:
    default = "**required**" if field.required else field.default and f"default {field.default}"
    return "; ".join(part for part in (field.type, default) if part)


def main(folder: Path) -> None:
    """Write both pages into `folder`."""
    folder.joinpath("config.md").write_text(config_reference(), encoding="utf-8")
    folder.joinpath("problems.md").write_text(problems_reference(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
