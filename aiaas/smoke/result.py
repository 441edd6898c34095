"""What a smoke test says: one answer as it came, a verdict on it, and a named result. Pure values.

A check sends (`smokechecks`), what came is judged apart from that (`smokejudge`, `smokestream`, `smokedeep`), and the
run (`smokerun`) puts name and time to the verdict. A check that could not be made is skipped with its reason, and a
skipped one never counts as passed.
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
    """One answer as it came.

    status     None where none came
    headers    names in lower case
    error      "" for a 200; else a kind of `aiaas.httpclient.answer`; connect, tls and timeout without `connected`
    where
               no connection came about
    arrivals   when parts of the body came, seconds since the request was sent; parts of one read have one moment
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

    held   None: the check could not be made, and `seen` is why
    hint   the usual cause, where it did not hold
    """

    held: bool | None
    expected: str
    seen: str
    hint: str = ""


class Result(msgspec.Struct, frozen=True):
    """A named check with its outcome: passed, failed or skipped. `seconds` is None where nothing was sent."""

    name: str
    outcome: str
    expected: str
    seen: str
    hint: str = ""
    seconds: float | None = None


def judged(held: bool, expected: str, seen: str, hint: str) -> Verdict:
    """A verdict; the hint stands only where it is of use."""
    return Verdict(held, expected, seen, "" if held else hint)


def skipped(reason: str) -> Verdict:
    """The check could not be made."""
    return Verdict(None, "", reason)


def result_of(name: str, verdict: Verdict, seconds: float | None, secrets: Collection[str] = ()) -> Result:
    """A result to be shown: what a server sent may hold our key, or bytes that would move a terminal's cursor."""
    outcome = SKIPPED if verdict.held is None else PASSED if verdict.held else FAILED
    expected, seen, hint = (_shown(text, secrets) for text in (verdict.expected, verdict.seen, verdict.hint))
    return Result(name, outcome, expected, seen, hint, seconds)


def _shown(text: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "<the key>")
    return "".join(sign if sign.isprintable() else " " for sign in text)


def choose(names: Sequence[str], only: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """The checks that are wanted, in their own order. Raises UsageError for a name that there is not."""
    for option, given in (("--only", only), ("--skip", without)):
        for name in given:
            if name not in names:
                raise UsageError(f"{option}: there is no check {name!r}; --list shows them")
    chosen = tuple(name for name in names if (not only or name in only) and name not in without)
    if not chosen:
        raise UsageError("--only and --skip leave no check")
    return chosen
