"""Text -> a tree that knows the place of each value.

The parser reads PyYAML's events rather than its nodes, so that it handles all irregular input in one place and in
bounded time and space: every duplicate key, tags, recursive or exploding aliases, deep nesting.

Plain scalars follow YAML 1.2's core schema, not 1.1: `no` is text and not false, `1:30` is text and not 90, `010` is
10. A plain scalar with `${` in it stays text whatever the variable holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from aiaas.config import codes
from aiaas.config.problem import Path, Place, Problem, Severity, dotted

MAX_TEXT: Final = 1024 * 1024  # characters; a config with hundreds of models is below 100 kB
MAX_DEPTH: Final = 40  # the config itself needs 8
MAX_VALUES: Final = 10_000  # after aliases are expanded

_TAG: Final = "tag:yaml.org,2002:"
_TAGS: Final = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq")) | {"!"}
_INT = re.compile(r"[-+]?[0-9]{1,40}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A leaf. `plain` text is resolved to null, a flag or a number; `literal` is a `|` block."""

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
    """A mapping, in the file's order; of duplicate keys it keeps the first."""

    entries: Mapping[str, tuple[Place, Node]]
    place: Place


Node = Scalar | Items | Table


@dataclass(slots=True)
class Flat:
    """A tree as plain data, with the place of every value and key.

    values, keys  path -> the place of the value, or of the key in front of it; a mapping or list has the place of its
                  key, since its own place would be that of its first item
    """

    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)


class Refused(Exception):
    """Reading cannot go on; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def parse(text: str, file: str, fixed: Place | None = None) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document. The node is None if the document is empty or reading cannot go on.

    fixed  one place for every node, if the document's lines are not the file's lines
    """
    builder = _Builder(file, fixed)
    if len(text) > MAX_TEXT:
        return None, [builder.problem(codes.UNREADABLE, Place(file), f"is larger than {MAX_TEXT // 1024} KiB")]
    try:
        return builder.document(yaml.parse(text, Loader=yaml.SafeLoader)), builder.problems
    except yaml.MarkedYAMLError as error:
        builder.problems.append(builder.syntax(error))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        message = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML; remove it"
        builder.problems.append(builder.problem(codes.SYNTAX, place, message))
    except Refused as refused:
        builder.problems.append(refused.problem)
    return None, builder.problems


class _Builder:
    """Builds one tree from PyYAML's events. `problems` collects the errors after which reading can go on."""

    def __init__(self, file: str, fixed: Place | None) -> None:
        self.file = file
        self.fixed = fixed
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node | None] = {}  # None while a node is open: an alias to it would be recursive

    def document(self, events: Iterator[Any]) -> Node | None:
        node: Node | None = None
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                if node is not None:
                    raise self.refuse(event, "there is a second document after `---`; a config is one document")
                node = self.node(event, events, ())
        return node

    def node(self, event: Any, events: Iterator[Any], path: Path) -> Node:
        if len(path) > MAX_DEPTH:
            raise self.refuse(event, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.tag is not None and event.tag not in _TAGS:
            self.problems.append(
                self.refuse(
                    event, f"has the tag {event.tag.replace(_TAG, '!!')[:60]}; tags are not supported", path
                ).problem
            )
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style is None and event.tag not in ("!", _TAG + "str")
            plain = plain or (event.tag is not None and event.tag.startswith(_TAG) and event.tag != _TAG + "str")
            node = Scalar(event.value, plain, event.style == "|", self.place(event))
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Items(tuple(self.items(events, path)), self.place(event))
        else:
            node = Table(self.entries(events, path), self.place(event))
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise self.refuse(event, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
        node = self.anchors[event.anchor]
        if node is None:
            raise self.refuse(event, f"the alias *{event.anchor} contains itself")
        return node

    def items(self, events: Iterator[Any], path: Path) -> Iterator[Node]:
        for index, event in enumerate(events):
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self.node(event, events, (*path, index))

    def entries(self, events: Iterator[Any], path: Path) -> dict[str, tuple[Place, Node]]:
        entries: dict[str, tuple[Place, Node]] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self.node(event, events, (*path, "?"))
            if not isinstance(key, Scalar):
                raise self.refuse(event, "a key must be plain text; quote it if it starts with { or [", path)
            place = self.place(event)
            inner = (*path, key.text)
            value = self.node(next(events), events, inner)
            if key.text == "<<" and key.plain:
                message = "merge keys are not supported; write the fields out"
                self.problems.append(self.problem(codes.YAML_FEATURE, place, message, inner))
            elif key.text in entries:
                message = f"is already set in line {entries[key.text][0].line}; keep one of the two"
                self.problems.append(self.problem(codes.DUPLICATE_KEY, place, message, inner))
            else:
                entries[key.text] = (place, value)
        return entries

    def place(self, event: Any) -> Place:
        return self.fixed or Place(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def refuse(self, event: Any, message: str, path: Path = ()) -> Refused:
        return Refused(self.problem(codes.YAML_FEATURE, self.place(event), message, path))

    def problem(self, code: str, place: Place, message: str, path: Path = ()) -> Problem:
        return problem_at(code, "error", path, message, place)

    def syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        place = Place(self.file, mark.line + 1, mark.column + 1) if mark else Place(self.file)
        place = self.fixed or place
        reason = error.problem or error.context or "cannot be parsed"
        if mark is not None and "expected ',' or '}', but got '{'" in reason:
            reason = 'a { inside {...} needs quotes, as in {key: "${NAME}"}'
        elif "'\\t'" in reason:
            reason = "there is a tab where YAML allows only spaces; indent with spaces"
        elif "expected <block end>" in reason or "mapping values are not allowed" in reason:
            reason = "this line does not fit the lines above it; check its indentation and the space after each :"
        elif error.context and error.problem:
            since = f" (line {error.context_mark.line + 1})" if error.context_mark else ""
            reason = f"{error.problem}, {error.context}{since}"
        return self.problem(codes.SYNTAX, place, f"is not valid YAML: {reason}")


def flatten(node: Node) -> Flat:
    """Return the tree as dicts, lists and values. Raises Refused if aliases expand to too many values."""
    flat = Flat()
    flat.data = _value(node, (), flat)
    return flat


def _value(node: Node, path: Path, flat: Flat) -> Any:
    flat.values[path] = node.place
    if len(path) > 2 * MAX_DEPTH:
        raise Refused(problem_at(codes.YAML_FEATURE, "error", (), "aliases nest too deep", node.place))
    if len(flat.values) > MAX_VALUES:
        message = f"has more than {MAX_VALUES} values once aliases are expanded"
        raise Refused(problem_at(codes.YAML_FEATURE, "error", (), message, node.place))
    if isinstance(node, Scalar):
        return resolve(node.text) if node.plain else node.text
    if isinstance(node, Items):
        return [_value(item, (*path, index), flat) for index, item in enumerate(node.items)]
    table = {}
    for key, (place, value) in node.entries.items():
        flat.keys[(*path, key)] = place
        table[key] = _value(value, (*path, key), flat)
        if not isinstance(value, Scalar):
            flat.values[(*path, key)] = place
    return table


def resolve(text: str) -> bool | int | float | str | None:
    """Return a plain scalar's value by YAML 1.2's core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def problem_at(code: str, severity: Severity, path: Path, message: str, place: Place) -> Problem:
    """Return a Problem about the field `path` at `place`."""
    return Problem(code, severity, dotted(path), message, place.file, place.line, place.column)
