"""`aiaas report`: a fault in a file is one line; the rest is in test_loadtest.py, where files are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.main import run


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 3, "a.jsonl: No such file or directory"),
        ("", 1, "a.jsonl: is empty"),
        ("hello\n", 1, "a.jsonl:1: is not a line of a load test's samples"),
    ],
    ids=["missing", "empty", "another file"],
)
def test_file_without_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, code: int, message: str
) -> None:
    """The line has the file's name."""
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    assert run(["report", str(tmp_path / "a.jsonl")]) == code
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err


RUN = b'{"kind":"run","format":1,"version":"0","url":"http://h","model":"<b>m</b>","started":"t","loop":"closed"}\n'
SAMPLE = b'{"kind":"sample","number":0,"due":0.1,"began":0.1,"first":0.3,"end":1.0,"status":200,"output_tokens":5}\n'


@pytest.mark.parametrize(
    "rest", [b"", SAMPLE, SAMPLE + SAMPLE[:50]], ids=["no request", "one", "a last line cut short"]
)
def test_a_page_is_written_beside_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: bytes) -> None:
    """The tables are on stdout as without it, and the page's path is on stderr."""
    (tmp_path / "a.jsonl").write_bytes(RUN + rest)
    assert run(["report", str(tmp_path / "a.jsonl")]) == 0
    plain = capsys.readouterr()
    assert run(["report", str(tmp_path / "a.jsonl"), "--html", str(tmp_path / "a.html")]) == 0
    said = capsys.readouterr()
    assert said.out == plain.out
    assert said.err == f"the page is in {tmp_path / 'a.html'}\n" + plain.err
    assert "&lt;b&gt;m&lt;/b&gt;" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_lost_streams_are_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables and the page have the fate of the requests in flight."""
    end = b'{"kind":"end","kill":{"command":"kill -9 7","at":0.5,"ended":0.6,"code":0}}\n'
    cut = SAMPLE.replace(b'"status"', b'"error":"in_stream","status"')
    (tmp_path / "a.jsonl").write_bytes(RUN + SAMPLE + end)
    assert run(["report", str(tmp_path / "a.jsonl")]) == 0
    (tmp_path / "b.jsonl").write_bytes(RUN + SAMPLE + cut + end)
    page = tmp_path / "b.html"
    assert run(["report", str(tmp_path / "b.jsonl"), "--html", str(page)]) == 1
    said = capsys.readouterr()
    assert "1 of the 2 requests in flight were lost with the replica" in said.err
    assert said.out.count("kill -9 7") == 2
    assert "Replica killed" in page.read_text(encoding="utf-8")


def test_a_page_has_every_run_that_is_named(tmp_path: Path) -> None:
    """Side by side, and each alone."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_bytes(RUN + SAMPLE)
    page = tmp_path / "a.html"
    assert run(["report", str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert [name for name in ("Side by side", "one", "two") if f"<h2>{name}</h2>" in text] == [
        "Side by side",
        "one",
        "two",
    ]


def test_samples_are_not_overwritten_with_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A measurement cannot be repeated."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(RUN)
    assert run(["report", str(file), "--html", str(tmp_path / "." / "a.jsonl")]) == 2
    assert file.read_bytes() == RUN
    assert "these are the samples; name another file" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line has the reason."""
    (tmp_path / "a.jsonl").write_bytes(RUN)
    assert run(["report", str(tmp_path / "a.jsonl"), "--html", str(tmp_path / "no" / "a.html")]) == 3
    assert "a.html: cannot be written: No such file or directory" in capsys.readouterr().err
