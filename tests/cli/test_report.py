"""`aiaas report`: what is wrong with a file is one line; the rest is in test_loadtest.py, where files are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.main import run


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 3, "a.jsonl: No such file or directory"),
        ("", 1, "a.jsonl: is empty"),
        ("hello\n", 1, "a.jsonl:1: is no line of a load test's samples"),
    ],
    ids=["missing", "empty", "another file"],
)
def test_what_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, code: int, message: str
) -> None:
    """With the file's name."""
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    assert run(["report", str(tmp_path / "a.jsonl")]) == code
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err
