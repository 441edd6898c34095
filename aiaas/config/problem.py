"""One finding about a config: which rule, how bad, which field, what is wrong, and where it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiaas.yamltree import Path, Place

Severity = Literal["error", "warning"]
# What a rule between fields finds: code, severity, the field, the message.
Finding = tuple[str, Severity, Path, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about a config.

    code      `AIA` and three digits, explained in docs/problems.md (`aiaas.config.codes`)
    severity  a warning lets the config be used
    path      the field in dotted form, "" for the whole file
    message   what is wrong; what is allowed. Never shows a secret
    file, line, column  as in `Place`
    """

    code: str
    severity: Severity
    path: str
    message: str
    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        field = f" {self.path}" if self.path else ""
        return f"{Place(self.file, self.line, self.column)}: {self.severity} {self.code}{field}: {self.message}"


def dotted(path: Path) -> str:
    """A path as people write it: `backends.vllm.models[0].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part or repr(part)}" if text else part
    return text


def has_errors(problems: tuple[Problem, ...]) -> bool:
    """Whether any of them keeps the config from being used."""
    return any(problem.severity == "error" for problem in problems)
