"""One line of `aiaas doctor`: a check, its outcome, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DoctorState = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`seen` says what was found; where it is not ok, it ends with what to do."""

    state: DoctorState
    check: str
    seen: str


def worst(findings: Iterable[Diagnosis]) -> DoctorState:
    """The state of all together."""
    states = {finding.state for finding in findings}
    return "FAIL" if "FAIL" in states else "warn" if "warn" in states else "ok"
