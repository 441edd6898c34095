"""The table of faults and their syntax."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.errors import UsageError
from aiaas.simulator.faults import FAULT_KINDS, Point, parse_fault


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "unknown fault 'nope'; the faults are none, refuse"),
        ("", "unknown fault ''"),
        ("busy:3", "fault busy does not take an argument, but '3' was given"),
        ("reset-mid-stream:x", "fault reset-mid-stream takes a number (tokens), not 'x'; e.g. reset-mid-stream:5"),
        ("reset-mid-stream:", "takes a number"),
        ("reset-mid-stream:-1", "takes a number"),
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
