"""The new text of a changed key file, in which unchanged records keep their text. Pure.

Writing and checking 50,000 records takes seconds, so only changed records are written and checked. That needs a file as
aiaas writes it: our first line, one short value a line, no comments, LF. In such a file only a record begins with `- `
at the start of a line. Any other file (edited by hand, from Windows, with text over several lines) is written as a
whole, which brings it into that form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aiaas.keys.model import KeyRecord
from aiaas.keys.records import END, HEADER, KEY_FILE_VERSION, parse_records, render_records
from aiaas.keys.tree import KeyFileError

_BEGIN: Final = f"{HEADER}\nversion: {KEY_FILE_VERSION}\nkeys:\n"
_FINISH: Final = f"{END}\n"
_VALUE: Final = r"(?:'(?:[^'\n\r]|'')*'|[\w$](?:[\w$=+/.,@-]| (?=\w))*)"
_LINE: Final = rf"(?:- id: {_VALUE}|  [a-z_]+:(?: {_VALUE})?|  - {_VALUE}|    [\w.-]+: {_VALUE})"
_FOREIGN_LINE: Final = re.compile(rf"^(?!{_LINE}$)", re.MULTILINE)


def rewrite(text: str, before: Sequence[KeyRecord], after: Sequence[KeyRecord], source: str) -> str:
    """The text of a key file that holds `before` as `text`, and is to hold `after`.

    Raises KeyFileError if `after` could not be read back (such as a limit of 10**20, or an id that is used twice).
    """
    rewritten = _rewrite_changed(text, before, after, source) if _are_distinct(after) else None
    if rewritten is None:
        rewritten = render_records(after)
        parse_records(rewritten, source)
    return rewritten


def _rewrite_changed(text: str, before: Sequence[KeyRecord], after: Sequence[KeyRecord], source: str) -> str | None:
    """The new text, with the lines of unchanged records from `text`; None where that is not possible."""
    old = {record.id: (record, lines) for record, lines in zip(before, _lines_of_each(text, before), strict=False)}
    changed = [record for record in after if record.id not in old or old[record.id][0] != record]
    written = render_records(changed)
    new = {record.id: (record, lines) for record, lines in zip(changed, _lines_of_each(written, changed), strict=False)}
    if len(changed) == len(after) or len(new) < len(changed):
        return None
    try:
        parse_records(written, source)
    except KeyFileError:  # the whole file's error names the right line
        return None
    known = old | new
    return "".join((_BEGIN, *(known[record.id][1] for record in after), _FINISH))


def _lines_of_each(text: str, records: Sequence[KeyRecord]) -> Sequence[str]:
    """The lines of each record in `text`; nothing where `text` does not have the form in which aiaas writes it."""
    if not (text.startswith(_BEGIN) and text.endswith(f"\n{_FINISH}")):
        return ()
    body = text[len(_BEGIN) : -len(_FINISH) - 1]
    if _FOREIGN_LINE.search(body):
        return ()
    nothing, *parts = f"\n{body}".split("\n- ")
    return () if nothing or len(parts) != len(records) else [f"- {part}\n" for part in parts]


def _are_distinct(records: Sequence[KeyRecord]) -> bool:
    return len({record.id for record in records}) == len({record.name for record in records}) == len(records)
