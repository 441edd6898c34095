"""One finding about a config: its rule, severity, field, message, and place in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiaas.yamltree import Path, Place

Severity = Literal["error", "warning"]
# The finding of a rule between fields: code, severity, field, message.
Finding = tuple[str, Severity, Path, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about a config.

    code      `AIA` and three digits, explained in docs/problems.md (`aiaas.config.codes`)
    severity  a config with warnings can be used, one with errors cannot
    path      the field in dotted form, "" for the whole file
    message   the error; then the fix or the allowed values. Never shows a secret
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


def by_place(problem: Problem) -> tuple[str, int, int]:
    """Return the sort key for the order of files and lines; problems that are in no file come first."""
    return problem.file if problem.line else "", problem.line, problem.column


def dotted(path: Path) -> str:
    """Return a path as people write it: `backends.vllm.models[0].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part or repr(part)}" if text else part
    return text


def has_errors(problems: tuple[Problem, ...]) -> bool:
    """Return whether any of the problems is an error, so that the config cannot be used."""
    return any(problem.severity == "error" for problem in problems)
