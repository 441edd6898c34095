"""docs/accepted.md, made from the table of accepted values: `python -m tests.openai.lenient_page` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.openai.lenient_table import (
    BODIES,
    REFUSED,
    TARGETS,
    TRUTH,
    TRUTH_FIELDS,
    WHOLE,
    WHOLE_FIELDS,
    Body,
    Target,
    Values,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "accepted.md"

_SAME: Final = '"model":"m","messages":[{"role":"user","content":"a"}],'

_INTRO = """# What is accepted

Clients write `"max_tokens": "50"`, a byte order mark, a slash at the end of a path. vLLM takes much of that. The rule
here: what vLLM takes and what cannot hurt others goes through, read as vLLM reads it. Limits, reservations and the
bounds of a model hold for the number that vLLM reads, and the body goes on as it was written. A body that two readers
might read differently is refused, since a client could be admitted as one request and run as another.

Fields that reach beyond their own request, such as `priority`, are refused or bounded: engine-fields.md.

This page is made from a table (`python -m tests.openai.lenient_page`). `tests/openai/test_lenient.py` holds aiaas to
it, and `tests/e2e/test_vllm_lenient.py` holds vLLM 0.32's own request models to it.
"""

_FILES = """## Files

| what | aiaas |
| --- | --- |
| a byte order mark, lines that end with CR LF | taken, as editors on Windows write both: in the key file, the config, \
the file of `--api-key-file`, and a key that comes in on stdin. `aiaas keys` writes the key file without them |
| UTF-16 | refused; the message says that the file is not UTF-8 |
"""


def page() -> str:
    """The text of docs/accepted.md."""
    parts = [
        _INTRO,
        "## Whole numbers\n",
        f"{_named(WHOLE_FIELDS)}\n",
        *_values(WHOLE),
        "\n## Truth values\n",
        f"{_named(TRUTH_FIELDS)}\n",
        *_values(TRUTH),
        "\n## Bodies\n",
        "| what | path | for example | vLLM 0.32 | aiaas |",
        "| --- | --- | --- | --- | --- |",
        *(_body(row) for row in BODIES),
        "\n## Paths\n",
        "| target | vLLM 0.32 | aiaas |",
        "| --- | --- | --- |",
        *(_target(row) for row in TARGETS),
        "\nThe id in `GET /v1/models/{id}` is looked for as it stands, and then without slashes at its end.\n",
        _FILES,
    ]
    return "\n".join(parts)


def _named(fields: tuple[tuple[str, str], ...]) -> str:
    names = dict.fromkeys(name for _, name in fields)
    return ", ".join(f"`{name}`" for name in names) + "."


def _values(rows: tuple[Values, ...]) -> Iterator[str]:
    yield "| what | for example, and what vLLM 0.32 reads | aiaas |"
    yield "| --- | --- | --- |"
    for row in rows:
        shown = ", ".join(f"`{_short(written)}`{_reading(reads)}" for written, reads in row.written.items())
        refused = REFUSED in row.written.values()
        yield f"| {row.what} | {shown} | {_ours('refused, as there' if refused else 'the same', row.why)} |"


def _reading(reads: object) -> str:
    if reads == REFUSED:
        return ""
    return f" {str(reads).lower() if isinstance(reads, bool) else _short(str(reads))}"


def _body(row: Body) -> str:
    shown = row.shown or _short(row.body.decode().replace(_SAME, ""), 110)
    ours = _ours("taken" if row.taken else "refused", row.why)
    return f"| {row.what} | `{row.path}` | `{shown}` | {'taken' if row.taken else 'refused'} | {ours} |"


def _target(row: Target) -> str:
    served = f"serves `{row.served}`" if row.served else "404"
    return f"| `{row.method} {row.target}` | {row.vllm} | {_ours(served, row.why)} |"


def _ours(otherwise: str, why: str) -> str:
    return f"refused: {why}" if why else otherwise


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 10]}..{text[-8:]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
