"""The text of systemd's unit files: sections, and words quoted as systemd.syntax(7) and systemd.service(5) say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

# Section -> its lines, each a name and a value; an empty name is a comment.
UnitFile = Mapping[str, Iterable[tuple[str, str]]]

_PLAIN: Final = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def unit_text(comment: str, unit: UnitFile) -> str:
    """A whole unit file, after the `comment` that begins it."""
    sections = (f"\n[{name}]\n" + "".join(map(_line, lines)) for name, lines in unit.items())
    return comment + "".join(sections)


def _line(line: tuple[str, str]) -> str:
    name, value = line
    return f"{name}={value}\n" if name else f"# {value}\n"


def command_line(words: Iterable[str]) -> str:
    """A command line for `ExecStart=`: systemd expands neither `$` nor `%` in it."""
    return " ".join(_quoted(word.replace("$", "$$")) for word in words)


def assignment(name: str, value: str) -> str:
    """A variable for `Environment=`, in which `$` has no meaning."""
    return _quoted(f"{name}={value}")


def _quoted(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + escaped.replace("%", "%%") + '"'
