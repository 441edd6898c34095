"""The table of faults and their syntax."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.errors import UsageError
from aiaas.simulator.faults import FAULT_KINDS, Fault, Point, Reach, parse_fault


@pytest.mark.parametrize("name", FAULT_KINDS)
def test_each_kind_is_written_by_its_name(name: str) -> None:
    """With its default argument."""
    fault = parse_fault(name)
    assert fault.name == name
    assert fault.arg == (FAULT_KINDS[name].default or 0)


def test_an_argument_follows_a_colon() -> None:
    """A number in the kind's unit."""
    assert parse_fault("reset-mid-stream:20").arg == 20
    assert parse_fault("slow-tokens:0.5").arg == 0.5
    assert parse_fault("html-error:503").strikes(Point.REQUEST)


def test_a_c_counts_characters_and_a_comma_the_requests() -> None:
    """In this order; the default argument can be left out."""
    fault = parse_fault("reset-mid-stream:120c,once")
    assert (fault.arg, fault.characters, fault.reach) == (120, True, Reach.ONCE)
    assert parse_fault("engine-dies-mid-stream,all") == Fault(FAULT_KINDS["engine-dies-mid-stream"], 5, Reach.ALL)
    assert parse_fault("error:500,each") == parse_fault("error:500")


@pytest.mark.parametrize(
    ("written", "tokens"), [("7", 7), ("0c", 0), ("3c", 0), ("4c", 1), ("7c", 2), ("100c", 3)], ids=lambda at: f"{at}"
)
def test_as_many_tokens_are_sent_as_fit(written: str, tokens: int) -> None:
    """A position inside of a token is before it."""
    assert parse_fault(f"reset-mid-stream:{written}").tokens_before(["This", " is", " it"]) == tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "unknown fault 'nope'; the faults are none, refuse"),
        ("", "unknown fault ''"),
        ("busy:3", "fault busy does not take an argument, but '3' was given"),
        (
            "reset-mid-stream:x",
            "fault reset-mid-stream takes a number (tokens, or characters with a c behind it), not 'x'; e.g. reset",
        ),
        ("reset-mid-stream:", "takes a number"),
        ("reset-mid-stream:-1", "takes a number"),
        ("reset-mid-stream:-1c", "takes a number"),
        ("slow-tokens:1c", "takes a number (seconds), not '1c'"),
        ("reset-mid-stream,twice", "'twice' is unknown; write each, once, all, sigterm"),
        ("reset-mid-stream,", "'' is unknown"),
        ("refuse,once", "fault refuse cannot strike once; it lasts"),
        ("slow-tokens,once", "fault slow-tokens cannot strike once"),
        (
            "half-event:3,all",
            "cannot strike all requests at once; these can: hang-mid-stream, reset-mid-stream, close-",
        ),
        ("error:500,sigterm", "fault error cannot strike all requests at once"),
        ("slow-tokens:inf", "takes a number"),
        ("slow-tokens:nan", "takes a number"),
        ("html-error:20", "takes a number (status)"),
        ("error:200", "takes a number (status)"),
    ],
)
def test_a_wrong_fault_is_one_clear_message(text: str, message: str) -> None:
    """The fault and the allowed values."""
    with pytest.raises(UsageError) as caught:
        parse_fault(text)
    assert message in caught.value.message


def test_docs_hold_every_fault() -> None:
    """docs/simulator.md names each kind with its default argument."""
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    written = [name if kind.default is None else f"{name}:{kind.default:g}" for name, kind in FAULT_KINDS.items()]
    assert [text for text in written if text != "none" and f"`{text}`" not in page] == []
