"""aiaas.cli.loadoptions: the options of a load test."""

from __future__ import annotations

from pathlib import Path

from aiaas.cli.loadoptions import read_keys


def test_a_key_file_from_an_editor_on_windows_is_read(tmp_path: Path) -> None:
    """Its byte order mark and its line end are not part of the key."""
    file = tmp_path / "team.key"
    file.write_bytes(b"\xef\xbb\xbfsk-test-key\r\n")
    assert [key.value for key in read_keys([file])] == ["sk-test-key"]
