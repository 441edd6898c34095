"""Read YAML into a small tree with lines and columns, for a file of a known and shallow shape. Pure.

Built from libyaml's event stream. PyYAML's C composer recurses on the C stack: 100,000 open brackets crash the whole
process, which a gateway that watches a file cannot risk. The events come one by one, so this code can bound the depth.
It refuses tags, anchors and aliases, which a key file does not need, and a key that appears twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from aiaas.errors import AiaasError

MAX_DEPTH: Final = 8
TOO_DEEP: Final = "nested too deep for a key file"

Place = tuple[int, int]  # line and column, both 1-based

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


class KeyFileError(AiaasError):
    """A key file that cannot be used, in one line: `keys.yaml:12:12: keys[3] (bob): expires 'soon' is not a date`.

    source  the file, as the user named it
    place   line and column of the fault, or None for a fault of the whole file
    reason  what is wrong and what to do; never a hash, never a key
    """

    def __init__(self, source: str, place: Place | None, reason: str) -> None:
        super().__init__(f"{source}: {reason}" if place is None else f"{source}:{place[0]}:{place[1]}: {reason}")
        self.source = source
        self.place = place
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar and its place. `plain` means unquoted, so that it may be a number, a truth value or null."""

    text: str
    plain: bool
    place: Place

    @property
    def null(self) -> bool:
        """Whether it is YAML's null."""
        return self.plain and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list and its place."""

    items: list[Node]
    place: Place


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping, in the file's order, and its place."""

    items: dict[str, Node]
    place: Place


Node = Scalar | Sequence | Mapping


def read_tree(text: str, source: str) -> Node:
    """Read the only document in `text`. Raises KeyFileError for anything but one plain YAML document."""
    try:
        events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        _expect(next(events), yaml.StreamStartEvent, source)
        _expect(next(events), yaml.DocumentStartEvent, source)
        root = _node(events, next(events), source, 0)
        _expect(next(events), yaml.DocumentEndEvent, source)
        _expect(next(events), yaml.StreamEndEvent, source)
        return root
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        place = None if mark is None else _place(mark)
        if "nesting" in problem:  # PyYAML 6.0.4 and later count too, and may be first: libyaml reads ahead
            raise KeyFileError(source, place, TOO_DEEP) from None
        reason = f"not YAML: {problem} (was it cut short, or merged with conflicts?)"
        raise KeyFileError(source, place, reason) from None
    except UnicodeError:
        raise KeyFileError(source, None, "not YAML: it holds characters that do not belong in a text file") from None


def _node(events: Iterator[Any], event: Any, source: str, depth: int) -> Node:
    place = _place(event.start_mark)
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None or not _untagged(event):
        raise KeyFileError(source, place, "YAML anchors, aliases and tags are not allowed in a key file")
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(text=event.value, plain=event.implicit[0], place=place)
    if depth == MAX_DEPTH:
        raise KeyFileError(source, place, TOO_DEEP)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(events, event, source, depth + 1))
        return Sequence(items=items, place=place)
    return _mapping(events, source, depth, place)


def _mapping(events: Iterator[Any], source: str, depth: int, place: Place) -> Mapping:
    items: dict[str, Node] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _node(events, event, source, depth + 1)
        if not isinstance(key, Scalar):
            raise KeyFileError(source, key.place, "a field's name must be a string")
        if key.text in items:
            raise KeyFileError(
                source, key.place, f"{key.text[:80]!r} appears twice; the first is in line {items[key.text].place[0]}"
            )
        items[key.text] = _node(events, next(events), source, depth + 1)
    return Mapping(items=items, place=place)


def _place(mark: Any) -> Place:
    return mark.line + 1, mark.column + 1


def _untagged(event: Any) -> bool:
    return event.tag is None or event.tag == "!"


def _expect(event: Any, kind: type, source: str) -> None:
    if not isinstance(event, kind):
        raise KeyFileError(source, _place(event.start_mark), "a key file must be one YAML document")
