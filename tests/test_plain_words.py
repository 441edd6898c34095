"""The check of words finds each bad phrase, with its line, and leaves plain sentences alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests import plain_words as words

BAD: Final = [
    "What is idle is let go of.",
    "It ends. What was open is closed.",
    "Closed: what is idle is closed.",
    "Who ends the request gives it back.",
    "The file is for whoever reads it.",
    "Of a path that is none of ours nothing is kept.",
    "A late answer is none.",
    "Half an event is no\nevent.",
    "Of each path so much is kept.",
    "Leave after so many lines.",
    "The file is not to be had.",
    "How the lock came about.",
    "It is let go of late.",
    "3: the world was in the way",
    "The file is invalid; mend it.",
    "See Contract section 5.",
    "See capture 81.",
    "The open side is HTTP.",
    "The file holds no key.",
    "It does without a lock.",
]

GOOD: Final = [
    "What is it?",
    "It says what was expected and what came.",
    "There is no such file.",
    "The key is no longer valid.",
    "It takes no more than a second.",
    "Whether there is none is known.",
    "So many as are open.",
    "An amendment recommended by the vendor.",
]


@pytest.mark.parametrize("text", BAD)
def test_phrase_that_nobody_says_is_found(text: str) -> None:
    """At least one finding, on the first line."""
    found = list(words.findings(words.Text(7, text)))
    assert found
    assert {line for line, _ in found} == {7}


@pytest.mark.parametrize("text", GOOD)
def test_plain_sentence_is_left_alone(text: str) -> None:
    """A check that cries wolf is switched off."""
    assert list(words.findings(words.Text(1, text))) == []


def test_python_file_is_read_whole() -> None:
    """Docstrings, strings, comments that go on over several lines, and the names of tests; not the code."""
    source = '"""A."""\nmend = 1\n# Half an event is\n# no event.\nx = "capture 1"\ndef test_%s(): pass\n' % ("a" * 56)
    texts = [(text.line, text.words) for text in words.texts_of_python(source)]
    assert texts == [(1, "A."), (5, "capture 1"), (3, "Half an event is\nno event.")]
    assert [line for line, _ in words.bad_test_names(source)] == [6]


@pytest.mark.parametrize("name", ["test_what_is_old_goes", "test_half_an_event_is_no_event", "test_a_fault_of_ours"])
def test_name_with_a_bad_phrase_is_found(name: str) -> None:
    """Short names are read too."""
    assert list(words.bad_test_names(f"def {name}(): pass"))
    assert list(words.bad_test_names("def test_key_is_no_longer_valid(): pass")) == []


def test_page_is_read_without_its_code() -> None:
    """The lines stay where they are."""
    page = "A\n```\nmend\n```\n`mend`\nmend\n"
    assert [line for text in words.texts_of_markdown(page) for line, _ in words.findings(text)] == [6]


def test_finding_names_file_line_and_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an editor can go there."""
    monkeypatch.setattr(words, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("Fix it.\nMend it.\n")
    assert words.judge_all((".",)) == ["a.md:2: 'Mend': fix"]


@pytest.mark.parametrize(
    ("subject", "good"),
    [
        ("workers: ignore a late key-file read", True),
        ("config, plan: rename a field", True),
        ("tests/proxy: rename tests", True),
        ('Revert "proxy: retry"', True),
        ("A late reading of a key file does not count", False),
        ("proxy: " + "a" * 66, False),
    ],
)
def test_commit_subject_is_judged(subject: str, good: bool) -> None:
    """An area, a colon, at most 72 characters."""
    assert words.bad_subjects([subject]) == ([] if good else [subject])
