"""Text -> a tree that knows the place of each value.

All irregular input is handled here, in bounded time and space: every duplicate key, tags, recursive or exploding
aliases, deep nesting.

Plain scalars follow YAML 1.2's core schema, not 1.1: `no` is text and not false, `1:30` is text and not 90, `010` is
10. A plain scalar with `${` in it stays text whatever the variable holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from aiaas.config import codes
from aiaas.config.problem import Problem, Severity, dotted
from aiaas.yamltree import Builder, Items, Node, Path, Place, Refused, Scalar, Table

MAX_TEXT: Final = 1024 * 1024  # characters; a config with hundreds of models is below 100 kB
MAX_CONFIG_DEPTH: Final = 40  # the config itself needs 8
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


@dataclass(slots=True)
class Flat:
    """A tree as plain data, with the place of every value and key.

    values, keys  path -> the place of the value, or of the key in front of it; a mapping or list has the place of its
                  key, since its own place would be that of its first item
    """

    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)


def parse(text: str, file: str, fixed: Place | None = None) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document. The node is None if the document is empty or reading cannot go on.

    fixed  one place for every node, if the document's lines are not the file's lines
    """
    if len(text) > MAX_TEXT:
        message = f"is larger than {MAX_TEXT // 1024} KiB"
        return None, [problem_at(codes.UNREADABLE_FILE, "error", (), message, Place(file))]
    builder = _Builder(file, yaml.parse(text, Loader=yaml.SafeLoader), fixed)
    node = None
    try:
        node = builder.document()
    except yaml.MarkedYAMLError as error:
        builder.found.append(builder.syntax(error))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        message = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML; remove it"
        builder.found.append((codes.SYNTAX, (), message, place))
    except Refused as error:
        builder.found.append((codes.YAML_FEATURE, error.path, error.message, error.place))
    return node, [problem_at(code, "error", path, message, place) for code, path, message, place in builder.found]


class _Builder(Builder):
    key_rule = "a key must be plain text; quote it if it starts with { or ["

    def __init__(self, file: str, events: Iterator[Any], fixed: Place | None) -> None:
        super().__init__(file, events)
        self.fixed = fixed

    def document(self) -> Node | None:
        node: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.NodeEvent):
                if node is not None:
                    raise Refused(self.place(event), "there is a second document after `---`; a config is one document")
                node = self.node(event, ())
        return node

    def check(self, event: Any, path: Path) -> None:
        if len(path) > MAX_CONFIG_DEPTH:
            raise Refused(self.place(event), f"is nested deeper than {MAX_CONFIG_DEPTH} levels")
        if not isinstance(event, yaml.AliasEvent) and event.tag is not None and event.tag not in _TAGS:
            message = f"has the tag {event.tag.replace(_TAG, '!!')[:60]}; tags are not supported"
            self.found.append((codes.YAML_FEATURE, path, message, self.place(event)))

    def check_key(self, key: Scalar, table: Table) -> tuple[str, str] | None:
        if key.text == "<<" and key.plain:
            return codes.YAML_FEATURE, "merge keys are not supported; write the fields out"
        if (place := table.keys.get(key.text)) is not None:
            return codes.DUPLICATE_KEY, f"is already set in line {place.line}; keep one of the two"
        return None

    def plain(self, event: Any) -> bool:
        if event.tag is not None and event.tag.startswith(_TAG):
            return bool(event.tag != _TAG + "str")
        return event.style is None and event.tag != "!"

    def place(self, event: Any) -> Place:
        return self.fixed or super().place(event)

    def syntax(self, error: yaml.MarkedYAMLError) -> tuple[str, Path, str, Place]:
        mark = error.problem_mark or error.context_mark
        place = self.fixed or (Place(self.file, mark.line + 1, mark.column + 1) if mark else Place(self.file))
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
        return codes.SYNTAX, (), f"is not valid YAML: {reason}", place


def flatten(node: Node) -> Flat:
    """Return the tree as dicts, lists and values. Raises Refused if aliases expand to too many values."""
    flat = Flat()
    flat.data = _value(node, (), flat)
    return flat


def lay_over(base: Flat, over: Flat) -> None:
    """Put a later file over an earlier one, in `base`: mappings merge, lists and all other values replace. Each value
    keeps the place in the file that it comes from."""
    replaced: set[Path] = set()
    base.data = _laid(base.data, over.data, (), replaced)
    for earlier, later in ((base.values, over.values), (base.keys, over.keys)):
        for at in [at for at in earlier if _is_inside(at, replaced)]:
            del earlier[at]
        earlier.update({at: place for at, place in later.items() if _is_inside(at, replaced)})


def _laid(old: Any, new: Any, path: Path, replaced: set[Path]) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        replaced.add(path)
        return new
    return old | {key: _laid(old.get(key), value, (*path, key), replaced) for key, value in new.items()}


def _is_inside(path: Path, others: set[Path]) -> bool:
    return any(path[:end] in others for end in range(len(path) + 1))


def _value(node: Node, path: Path, flat: Flat) -> Any:
    flat.values[path] = node.place
    if len(path) > 2 * MAX_CONFIG_DEPTH:
        raise Refused(node.place, "aliases nest too deep")
    if len(flat.values) > MAX_VALUES:
        raise Refused(node.place, f"has more than {MAX_VALUES} values once aliases are expanded")
    if isinstance(node, Scalar):
        return resolve(node.text) if node.plain else node.text
    if isinstance(node, Items):
        return [_value(item, (*path, index), flat) for index, item in enumerate(node.items)]
    table = {}
    for key, value in node.values.items():
        flat.keys[(*path, key)] = place = node.keys[key]
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
