"""The values of a smoke test: one answer, the verdict on it, and a named result. Pure.

A check sends a request (`checks`, `second_source`), a pure function judges the answer (`judge`, `judge_stream`,
`judge_metrics`), and `run` adds name and time to the verdict. A check that could not run is skipped with its reason,
and never counts as passed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from aiaas.errors import UsageError

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


class Seen(msgspec.Struct, frozen=True):
    """One answer.

    status     None where the server did not answer
    headers    names in lower case
    error      "" for a 200; else a kind of `aiaas.httpclient.answer`; `connected` is False where connect, tls or
               timeout happened before there was a connection
    arrivals   when parts of the body arrived, seconds since the request was sent; parts of one read have the same time
    seconds    from sending to the end
    """

    status: int | None = None
    headers: Mapping[str, str] = {}
    body: bytes = b""
    error: str = ""
    code: str = ""
    detail: str = ""
    arrivals: tuple[float, ...] = ()
    seconds: float = 0.0
    connected: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """Expected against seen.

    held   None where the check could not run; `seen` then says why
    hint   the usual cause of the failure
    """

    held: bool | None
    expected: str
    seen: str
    hint: str = ""


class Result(msgspec.Struct, frozen=True):
    """A named check with its outcome: passed, failed or skipped. `seconds` is None where the check did not run."""

    name: str
    outcome: str
    expected: str
    seen: str
    hint: str = ""
    seconds: float | None = None


def judged(held: bool, expected: str, seen: str, hint: str) -> Verdict:
    """Make a verdict; a check that passed has no hint."""
    return Verdict(held, expected, seen, "" if held else hint)


def skipped(reason: str) -> Verdict:
    """Make the verdict of a check that could not run."""
    return Verdict(None, "", reason)


def result_of(name: str, verdict: Verdict, seconds: float | None, secrets: Collection[str] = ()) -> Result:
    """Make a result that is safe to show: remove the key, and bytes that would move a terminal's cursor."""
    outcome = SKIPPED if verdict.held is None else PASSED if verdict.held else FAILED
    expected, seen, hint = (_shown(text, secrets) for text in (verdict.expected, verdict.seen, verdict.hint))
    return Result(name, outcome, expected, seen, hint, seconds)


def _shown(text: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "<the key>")
    return "".join(sign if sign.isprintable() else " " for sign in text)


def choose_checks(names: Sequence[str], only: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """The wanted checks, in their own order. Raises UsageError for an unknown name."""
    for option, given in (("--only", only), ("--skip", without)):
        for name in given:
            if name not in names:
                raise UsageError(f"{option}: unknown check {name!r}; --list shows them all")
    chosen = tuple(name for name in names if (not only or name in only) and name not in without)
    if not chosen:
        raise UsageError("--only and --skip leave nothing to check")
    return chosen
