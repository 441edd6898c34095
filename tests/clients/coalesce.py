"""Join the events of a stream that only carry its text in pieces: a busy vLLM puts several tokens into one event."""

from __future__ import annotations

import copy
from typing import Any, Final

# Where a piece of text stands: in responses, in messages (text, and a tool's arguments), in chat, in completions.
PLACES: Final[tuple[tuple[str | int, ...], ...]] = (
    ("delta",),
    ("delta", "text"),
    ("delta", "partial_json"),
    ("choices", 0, "delta", "content"),
    ("choices", 0, "text"),
)


def coalesced(events: list[Any]) -> list[Any]:
    """The events, with neighbours joined that differ in a piece of text alone. Their numbers go."""
    joined: list[Any] = []
    for event in events:
        numberless = _without_number(event)
        if not joined or not _join(joined[-1], numberless):
            joined.append(numberless)
    return joined


def _without_number(event: Any) -> Any:
    if not isinstance(event, dict):
        return event
    return copy.deepcopy({name: value for name, value in event.items() if name != "sequence_number"})


def _join(last: Any, event: Any) -> bool:
    """Add the event's piece of text to the last one, if nothing else differs."""
    for place in PLACES:
        one, other = _get(last, place), _get(event, place)
        if isinstance(one, str) and isinstance(other, str):
            _set(last, place, other)
            if last == event:
                _set(last, place, one + other)
                return True
            _set(last, place, one)
    return False


def _get(value: Any, place: tuple[str | int, ...]) -> Any:
    for step in place:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and len(value) > step else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _set(value: Any, place: tuple[str | int, ...], text: str) -> None:
    *steps, last = place
    for step in steps:
        value = value[step]
    value[last] = text
