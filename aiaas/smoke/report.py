"""The results of a smoke test as JSON, JUnit XML and lines of text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from xml.etree import ElementTree as xml

from msgspec import to_builtins

from aiaas.smoke.result import FAILED, PASSED, SKIPPED, Result

CHECK_COLUMN: Final = 14


def held(results: Sequence[Result]) -> bool:
    """Whether at least one check passed and none failed."""
    return all(result.outcome != FAILED for result in results) and any(result.outcome == PASSED for result in results)


def count(results: Sequence[Result], outcome: str) -> int:
    """How many results have this outcome."""
    return sum(result.outcome == outcome for result in results)


def results_line(results: Sequence[Result]) -> str:
    """The last line."""
    return ", ".join(f"{count(results, outcome)} {outcome}" for outcome in (PASSED, FAILED, SKIPPED))


def lines(result: Result) -> list[str]:
    """A result as lines of text; a failure shows what was expected, what came, and the usual cause."""
    first = f"{result.outcome:7}  {result.name:{CHECK_COLUMN}}  {took_of(result):>8}  "
    if result.outcome != FAILED:
        return [first + result.seen]
    more = [f"expected  {result.expected}"] + ([f"hint      {result.hint}"] if result.hint else [])
    return [first + result.seen, *(f"{'':9}{line}" for line in more)]


def took_of(result: Result) -> str:
    """How long the check took, "" where it did not run."""
    if result.seconds is None:
        return ""
    if result.seconds >= 1:
        return f"{result.seconds:.1f} s"
    return f"{result.seconds * 1000:.{0 if result.seconds >= 0.01 else 1}f} ms"


def results_as_json(url: str, results: Sequence[Result], *, interrupted: bool) -> dict[str, Any]:
    """For machines."""
    return {
        "url": url,
        "held": held(results) and not interrupted,
        "interrupted": interrupted,
        **{outcome: count(results, outcome) for outcome in (PASSED, FAILED, SKIPPED)},
        "checks": [to_builtins(result) for result in results],
    }


def to_junit(url: str, results: Sequence[Result], started: str) -> bytes:
    """JUnit's XML, as CI systems read it: one suite, one case a check. `started` in ISO 8601."""
    counts = {
        "tests": len(results),
        "failures": count(results, FAILED),
        "errors": 0,
        "skipped": count(results, SKIPPED),
    }
    seconds = f"{sum(result.seconds or 0 for result in results):.3f}"
    numbers = {name: str(number) for name, number in counts.items()} | {"time": seconds}
    suites = xml.Element("testsuites", {"name": "aiaas smoke", **numbers})
    suite = xml.SubElement(suites, "testsuite", {"name": f"aiaas smoke {url}", "timestamp": started, **numbers})
    for result in results:
        case = {"classname": "aiaas.smoke", "name": result.name, "time": f"{result.seconds or 0:.3f}"}
        one = xml.SubElement(suite, "testcase", case)
        if result.outcome == SKIPPED:
            xml.SubElement(one, "skipped", {"message": _legal(result.seen)})
        elif result.outcome == FAILED:
            text = f"expected: {result.expected}\ncame: {result.seen}\nhint: {result.hint}\n"
            xml.SubElement(one, "failure", {"message": _legal(result.seen), "type": "failed"}).text = _legal(text)
        else:
            xml.SubElement(one, "system-out").text = _legal(result.seen)
    xml.indent(suites)
    written: bytes = xml.tostring(suites, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _legal(text: str) -> str:
    """Remove the characters that XML 1.0 forbids even when escaped (section 2.2): a server may send any byte."""
    return "".join(
        sign
        if sign in "\t\n" or (sign >= " " and not "\ud800" <= sign <= "\udfff" and sign not in "\ufffe\uffff")
        else "?"
        for sign in text
    )
