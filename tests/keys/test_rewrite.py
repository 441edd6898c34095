"""The new text of a changed key file: the same as if it were written as a whole, at the cost of what changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.keys import rewrite as module
from aiaas.keys.file import edit_key_file, read_key_file
from aiaas.keys.model import KeyLimits, KeyRecord
from aiaas.keys.records import parse_records, render_records
from aiaas.keys.rewrite import rewrite
from aiaas.keys.tree import KeyFileError
from tests.cputime import cpu_time
from tests.keys.test_records import ALICE, FULL, records

SOURCE = "keys.yaml"
BOB, CAROL = replace(ALICE, id="bbbbbbbb", name="bob"), replace(ALICE, id="cccccccc", name="carol")
MANY = tuple(replace(ALICE, id=f"{number:08d}", name=f"user-{number}") for number in range(1000))


@given(
    st.lists(records, unique_by=(lambda record: record.id, lambda record: record.name), min_size=1, max_size=6),
    st.data(),
)
def test_changed_file_equals_one_written_as_a_whole(made: list[KeyRecord], data: st.DataObject) -> None:
    """Whatever is added, removed, changed or moved, and whatever stands in a value."""
    before = made[: data.draw(st.integers(0, len(made)))]
    after = data.draw(st.permutations(made))[: data.draw(st.integers(0, len(made)))]
    if after and data.draw(st.booleans()):
        new = KeyLimits(burst=3)
        after[0] = replace(after[0], limits=new, user_limits=KeyLimits(), metadata={"team": "search"})
    assert rewrite(render_records(before), before, after, SOURCE) == render_records(after)


OTHER_FORMS: dict[str, Callable[[str], str]] = {
    "comment on a line of its own": lambda text: text.replace("- id: bbbbbbbb", "# bob's\n- id: bbbbbbbb"),
    "comment behind a value": lambda text: text.replace("name: bob", "name: bob  # of search"),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "no newline at the end": lambda text: text.removesuffix("\n"),
    "no first line and no end": lambda text: text.split("\n", 1)[1].removesuffix("...\n"),
    "empty line": lambda text: text.replace("- id: bbbbbbbb", "\n- id: bbbbbbbb"),
    "flow style": lambda text: text.replace("  name: bob\n", "  name: bob\n  limits: {burst: 3}\n"),
    "double quotes": lambda text: text.replace("name: bob", 'name: "bob"'),
    "deeper indentation": lambda text: text.replace("\n- ", "\n - ").replace("\n  ", "\n   "),
    "name before id": lambda text: text.replace("- id: bbbbbbbb\n  name: bob", "- name: bob\n  id: bbbbbbbb"),
    "quoted value over two lines": lambda text: text.replace(
        "  name: bob\n", "  name: bob\n  metadata:\n    team: 'a\n- b'\n"
    ),
}


@pytest.mark.parametrize("form", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_file_in_another_form_is_written_as_a_whole(form: Callable[[str], str]) -> None:
    """Comments and line ends of an editor go, and the records stay."""
    text = form(render_records([ALICE, BOB]))
    before = parse_records(text, SOURCE)
    assert text != render_records([ALICE, BOB])
    assert rewrite(text, before, (*before, CAROL), SOURCE) == render_records([*before, CAROL])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (replace(CAROL, id="aaaaaaaa"), "keys.yaml:14:3: id 'aaaaaaaa' is already used in line 4"),
        (replace(CAROL, name="bob"), "keys.yaml:14:3: name 'bob' is already used in line 9"),
        (replace(CAROL, limits=KeyLimits(burst=10**20)), "keys.yaml:20:12: keys[2] (carol): limits: burst must be a"),
    ],
    ids=["id used twice", "name used twice", "limit too large"],
)
def test_records_that_cannot_be_read_back_are_refused(new: KeyRecord, message: str) -> None:
    """With the line in the whole file."""
    with pytest.raises(KeyFileError, match=re.escape(message)):
        rewrite(render_records([ALICE, BOB]), [ALICE, BOB], [ALICE, BOB, new], SOURCE)


@pytest.mark.parametrize(
    ("after", "written"),
    [((*MANY, ALICE), 1), ((FULL, *MANY[1:]), 1), (MANY[:-1], 0), ((*MANY[:-2], BOB, CAROL), 2)],
    ids=["create", "rotate", "prune", "two at once"],
)
def test_only_changed_records_are_written(
    monkeypatch: pytest.MonkeyPatch, after: tuple[KeyRecord, ...], written: int
) -> None:
    """However many the file has; and only these are read again."""
    counts = []
    monkeypatch.setattr(module, "render_records", lambda made: counts.append(len(made)) or render_records(made))
    monkeypatch.setattr(
        module, "parse_records", lambda text, source: counts.append(text.count("- id:")) or parse_records(text, source)
    )
    rewrite(render_records(MANY), MANY, after, SOURCE)
    assert counts == [written, written]


def test_edit_takes_little_longer_than_reading(tmp_path: Path) -> None:
    """One new key among 5,000: the file is read once, and not written and read again record by record."""
    path, numbers = tmp_path / "keys.yaml", iter(range(100))
    path.write_text(render_records(replace(ALICE, id=f"{n:08d}", name=f"user-{n}") for n in range(5000)))

    def create() -> None:
        number = next(numbers)
        with edit_key_file(path) as file:
            file.records = (*file.records, replace(ALICE, id=f"new{number:05d}", name=f"new-{number}"))

    assert cpu_time(create) < 2 * cpu_time(lambda: read_key_file(path))
