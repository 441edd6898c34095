"""A key file's YAML -> a tree with lines and columns.

It refuses tags, anchors and aliases, which a key file does not need, and a key that appears twice. libyaml reads it:
ten thousand keys are read again at every change.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from aiaas.errors import AiaasError
from aiaas.yamltree import Builder, Node, Path, Place, Refused, Scalar, Table

MAX_KEY_FILE_DEPTH: Final = 8
TOO_DEEP: Final = "nested too deep for a key file"


class KeyFileError(AiaasError):
    """A key file that cannot be used, in one line: `keys.yaml:12:12: keys[3] (bob): expires 'soon' is not a date`.

    place   the file, as the user named it; with line and column, but for a fault of the whole file
    reason  what is wrong and what to do; never a hash, never a key
    """

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


def read_tree(text: str, source: str) -> Node:
    """Read the only document in `text`. Raises KeyFileError for anything but one plain YAML document."""
    try:
        return _Builder(source, yaml.parse(text, Loader=yaml.CSafeLoader)).document()
    except Refused as error:
        raise KeyFileError(error.place, error.message) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        place = Place(source) if mark is None else Place(source, mark.line + 1, mark.column + 1)
        if "nesting" in problem:  # PyYAML 6.0.4 and later count too, and may be first: libyaml reads ahead
            raise KeyFileError(place, TOO_DEEP) from None
        raise KeyFileError(place, f"not YAML: {problem} (was it cut short, or merged with conflicts?)") from None
    except UnicodeError:
        reason = "not YAML: it holds characters that do not belong in a text file"
        raise KeyFileError(Place(source), reason) from None


class _Builder(Builder):
    key_rule = "a field's name must be a string"

    def document(self) -> Node:
        self.expect(yaml.StreamStartEvent, yaml.DocumentStartEvent)
        root = self.node(next(self.events), ())
        self.expect(yaml.DocumentEndEvent, yaml.StreamEndEvent)
        return root

    def expect(self, *kinds: type) -> None:
        for kind, event in zip(kinds, self.events, strict=False):
            if not isinstance(event, kind):
                raise Refused(self.place(event), "a key file must be one YAML document")

    def check(self, event: Any, path: Path) -> None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag not in (None, "!"):
            raise Refused(self.place(event), "YAML anchors, aliases and tags are not allowed in a key file")
        if len(path) == MAX_KEY_FILE_DEPTH and not isinstance(event, yaml.ScalarEvent):
            raise Refused(self.place(event), TOO_DEEP)

    def check_key(self, key: Scalar, table: Table) -> None:
        if (first := table.values.get(key.text)) is not None:
            message = f"{key.text[:80]!r} appears twice; the first is in line {first.place.line}"
            raise Refused(key.place, message)
