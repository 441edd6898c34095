"""YAML -> a tree that knows the place of each value, for the config and for the key file. Pure.

The tree is built from PyYAML's events, which come one by one, and not from its nodes: its composers recurse without a
bound, and 100,000 open brackets crash the whole process, which a gateway that watches a file cannot risk. Each kind of
file has its own subclass of `Builder`, with its refusals and their messages. A key file has four values for each of
50,000 keys, so a leaf and its place are Structs that the cyclic collector does not look at: neither can be in a cycle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

Path = tuple[str | int, ...]


class Place(msgspec.Struct, frozen=True, gc=False):
    """The place of a value in a file. Line and column count from 1; they are 0 if the value is not in a file.

    file  as the operator named it, or `$NAME` for a value that an environment variable gave
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Scalar(msgspec.Struct, frozen=True, gc=False):
    """A leaf. `plain` text may be null, a flag or a number; `literal` is a `|` block."""

    text: str
    plain: bool
    literal: bool
    place: Place


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping, in the file's order. `keys` has the place of each key."""

    values: dict[str, Node]
    keys: dict[str, Place]
    place: Place


Node = Scalar | Items | Table


class Refused(Exception):
    """Reading cannot go on: the place, the message, and the field."""

    def __init__(self, place: Place, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.place = place
        self.message = message
        self.path = path


class Builder(ABC):
    """Builds one tree from the events of one file.

    found  the errors after which reading goes on: code, field, message, place
    """

    key_rule: str  # the message for a key that is not text

    def __init__(self, file: str, events: Iterator[Any]) -> None:
        self.file = file
        self.events = events
        self.found: list[tuple[str, Path, str, Place]] = []
        self.anchors: dict[str, Node | None] = {}  # None while a node is open: an alias to it would be recursive

    @abstractmethod
    def check(self, event: Any, path: Path) -> None:
        """Check a node before it is read; the depth has to be bounded here."""

    @abstractmethod
    def check_key(self, key: Scalar, table: Table) -> tuple[str, str] | None:
        """Check a key before its value is read. Returns the code and the message if the key is left out."""

    def plain(self, event: Any) -> bool:
        """Return whether a scalar may be more than text."""
        return bool(event.implicit[0])

    def place(self, event: Any) -> Place:
        """Return the place of an event."""
        mark = event.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1)

    def node(self, event: Any, path: Path) -> Node:
        """Return the node that `event` begins."""
        self.check(event, path)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = Scalar(event.value, self.plain(event), event.style == "|", self.place(event))
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Items(tuple(self._items(path)), self.place(event))
        else:
            node = self._table(event, path)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            message = f"the alias *{event.anchor} has no anchor &{event.anchor} before it"
            raise Refused(self.place(event), message)
        node = self.anchors[event.anchor]
        if node is None:
            raise Refused(self.place(event), f"the alias *{event.anchor} contains itself")
        return node

    def _items(self, path: Path) -> Iterator[Node]:
        for index, event in enumerate(self.events):
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self.node(event, (*path, index))

    def _table(self, start: Any, path: Path) -> Table:
        table = Table({}, {}, self.place(start))
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key, place = self.node(event, (*path, "?")), self.place(event)
            if not isinstance(key, Scalar):
                raise Refused(place, self.key_rule, path)
            inner = (*path, key.text)
            fault, value = self.check_key(key, table), self.node(next(self.events), inner)
            if fault is None:
                table.values[key.text], table.keys[key.text] = value, place
            else:
                self.found.append((fault[0], inner, fault[1], place))
        return table
