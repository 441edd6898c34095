"""YAML text to a small tree with line numbers, for a file that has a known and shallow shape. Pure.

Built from libyaml's event stream. PyYAML's C composer recurses on the C stack: 100,000 open brackets crash the whole
process, which a gateway that watches a file cannot have. The events come one by one, so depth is ours to bound. Tags,
anchors and aliases have no place in a key file and are refused, and so is a key that appears twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from aiaas.errors import AiaasError

MAX_DEPTH: Final = 8
TOO_DEEP: Final = "nested too deep for a key file"

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


class KeyFileError(AiaasError):
    """A key file that cannot be used, in one line: `keys.yaml:12: keys[3] (bob): expires: 'soon' is not a date`.

    source  the file as the user knows it
    line    1-based, or None where no single line is at fault
    reason  what is wrong and what to do; never a hash, never a key
    """

    def __init__(self, source: str, line: int | None, reason: str) -> None:
        super().__init__(f"{source}: {reason}" if line is None else f"{source}:{line}: {reason}")
        self.source = source
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar and its 1-based line. `plain` is one without quotes, which may mean a number, a truth value or null."""

    text: str
    plain: bool
    line: int

    @property
    def null(self) -> bool:
        """Whether it stands for nothing at all."""
        return self.plain and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list and the line that it begins on."""

    items: list[Node]
    line: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping, in the file's order, and the line that it begins on."""

    items: dict[str, Node]
    line: int


Node = Scalar | Sequence | Mapping


def read_tree(text: str, source: str) -> Node:
    """The only document in `text`. Raises KeyFileError where that is not YAML, or not one plain document."""
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
        line = None if mark is None else mark.line + 1
        if "nesting" in problem:  # PyYAML 6.0.4 and later count too, and may be first: libyaml reads ahead
            raise KeyFileError(source, line, TOO_DEEP) from None
        raise KeyFileError(source, line, f"not YAML: {problem} (was it cut short, or merged with conflicts?)") from None
    except UnicodeError:
        raise KeyFileError(source, None, "not YAML: it holds characters that no text file has") from None


def _node(events: Iterator[Any], event: Any, source: str, depth: int) -> Node:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None or not _untagged(event):
        raise KeyFileError(source, line, "a key file has no YAML anchors, aliases or tags")
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(text=event.value, plain=event.implicit[0], line=line)
    if depth == MAX_DEPTH:
        raise KeyFileError(source, line, TOO_DEEP)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(events, event, source, depth + 1))
        return Sequence(items=items, line=line)
    return _mapping(events, source, depth, line)


def _mapping(events: Iterator[Any], source: str, depth: int, line: int) -> Mapping:
    items: dict[str, Node] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _node(events, event, source, depth + 1)
        if not isinstance(key, Scalar):
            raise KeyFileError(source, key.line, "a field's name must be a text")
        if key.text in items:
            raise KeyFileError(
                source, key.line, f"{key.text[:80]!r} appears twice; the first is in line {items[key.text].line}"
            )
        items[key.text] = _node(events, next(events), source, depth + 1)
    return Mapping(items=items, line=line)


def _untagged(event: Any) -> bool:
    return event.tag is None or event.tag == "!"


def _expect(event: Any, kind: type, source: str) -> None:
    if not isinstance(event, kind):
        raise KeyFileError(source, event.start_mark.line + 1, "a key file is one YAML document")
