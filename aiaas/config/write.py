"""Plain data -> YAML text, deterministic, and read back as the same data by every parser.

Parsers disagree about plain scalars: `no` is text to aiaas and false to YAML 1.1, `1e3` is a number to aiaas and text
to PyYAML, `0o17` is text to aiaas and 15 to Go. So a text is written in double quotes unless every parser reads it as
text without them. Text of several lines becomes a literal block. Keys keep their order; lines are not folded.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

# The first character is not a digit, sign or dot, so no parser reads a number, date or sexagesimal. `y` and `n` are
# flags to some parsers.
_SURELY_TEXT: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./@-]*")
_SINGLE_LETTER_FLAGS: Final = frozenset("yYnN")
_STR: Final = "tag:yaml.org,2002:str"
_NEVER_FOLD: Final = 1_000_000_000  # characters


def to_yaml(document: Any) -> str:
    """Return one document as block-style YAML with a newline at its end. `document` consists of JSON's types."""
    text: str = yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=_NEVER_FOLD
    )
    return text


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper with safe quoting, lists indented below their key, and without anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the items of a list by two more spaces than PyYAML does, since that is easier to read."""
        del indentless
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values under two keys twice: a person would not write `&id001`."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None
    if "\n" in value:
        style = "|"
    elif not _is_surely_text(dumper, value):
        style = '"'
    return dumper.represent_scalar(_STR, value, style=style)


def _is_surely_text(dumper: yaml.SafeDumper, value: str) -> bool:
    if not _SURELY_TEXT.fullmatch(value) or value in _SINGLE_LETTER_FLAGS:
        return False
    tag = dumper.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
    return bool(tag == _STR)


_Dumper.add_representer(str, _text)
