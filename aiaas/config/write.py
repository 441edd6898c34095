"""Plain data -> YAML text, always in the same way, and read back as the same data by everybody.

Readers disagree about plain scalars: `no` is text to us and false to YAML 1.1, `1e3` is a number to us and text to
PyYAML, `0o17` is text to us and 15 to Go. So a text stands plain only where it cannot be taken for anything else, and
in double quotes otherwise. Text of several lines is a literal block. Keys keep their order; no line is folded.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

# No digit, sign or dot first, so no number, date or sexagesimal of any reader; `y` and `n` are flags to some.
_SURELY_TEXT: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./@-]*")
_SINGLE_LETTER_FLAGS: Final = frozenset("yYnN")
_STR: Final = "tag:yaml.org,2002:str"
_NEVER_FOLD: Final = 1_000_000_000  # characters


def to_yaml(document: Any) -> str:
    """One document as block-style YAML with a newline at its end. `document` is made of JSON's own types."""
    text: str = yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=_NEVER_FOLD
    )
    return text


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with our quoting, lists indented below their key, and no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """PyYAML writes the items of a list at the indentation of its key; two more are easier to read."""
        del indentless
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """The same labels under two keys are written twice: `&id001` is nothing that a person would write."""
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
