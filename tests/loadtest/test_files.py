"""The file of samples: its content stays, and write errors are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.loadtest.files import SampleFile, read_file_lines, read_run, write_page
from aiaas.loadtest.sample import Run
from tests.loadtest.samples import sample

RUN = Run(1, "0", "u", "m", "t", "closed")


def test_flushed_samples_are_there_before_the_end(tmp_path: Path) -> None:
    """A later crash loses nothing of it."""
    file = SampleFile(tmp_path / "a.jsonl")
    file.write(RUN)
    file.write(sample(1.0))
    file.flush()
    assert read_run(tmp_path / "a.jsonl").samples == (sample(1.0),)
    file.close()


def test_a_measurement_is_never_overwritten(tmp_path: Path) -> None:
    """A measurement cannot be repeated."""
    (tmp_path / "a.jsonl").write_text("x")
    with pytest.raises(EnvironmentFault, match="already exists"):
        SampleFile(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "x"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """One line with the path."""
    with pytest.raises(EnvironmentFault, match="cannot be written: No such file"):
        SampleFile(tmp_path / "no" / "a.jsonl")


def test_a_full_disk_is_told_and_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller ends the run cleanly."""
    monkeypatch.setattr(Path, "open", lambda _path, _mode: open("/dev/full", "wb"))  # noqa: SIM115
    file = SampleFile(tmp_path / "a")
    file.write(RUN)
    assert file.failure == ""
    file.flush()
    assert file.failure == f"{tmp_path}/a: cannot be written: No space left on device"
    file.close()


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A missing file is an environment error, other content the file's fault."""
    with pytest.raises(EnvironmentFault, match="No such file"):
        read_run(tmp_path / "no")
    with pytest.raises(EnvironmentFault, match="No such file"):
        read_file_lines(tmp_path / "no")
    (tmp_path / "b").write_bytes(b"\x00\xff\n")
    with pytest.raises(CheckFailed, match="b:1: is not a line"):
        read_run(tmp_path / "b")


def test_a_page_is_written_over_what_was_there(tmp_path: Path) -> None:
    """A page can be made again, and nothing else is left in the folder."""
    write_page(tmp_path / "a.html", "old")
    write_page(tmp_path / "a.html", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.html", "new")]


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """And the old file stays."""
    (tmp_path / "a.html").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot be written: Is a directory"):
        write_page(tmp_path / "a.html", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    with pytest.raises(EnvironmentFault, match="No such file or directory"):
        write_page(tmp_path / "no" / "a.html", "x")
