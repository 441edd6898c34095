"""aiaas.cli.loadoptions: the options of a load test."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.loadoptions import read_keys, read_kill
from aiaas.errors import UsageError
from aiaas.loadtest.kill_run import KillOrder
from aiaas.loadtest.runner import Stage


def test_a_key_file_from_an_editor_on_windows_is_read(tmp_path: Path) -> None:
    """Its byte order mark and its line end are not part of the key."""
    file = tmp_path / "team.key"
    file.write_bytes(b"\xef\xbb\xbfsk-test-key\r\n")
    assert [key.value for key in read_keys([file])] == ["sk-test-key"]


LOAD = (Stage(users=8, ramp=1.0, warmup=2.0, duration=30.0),)
COUNTED = (Stage(users=8, requests=100),)


@pytest.mark.parametrize(
    ("after", "stages", "moment"),
    [(None, LOAD, 18.0), ("5s", LOAD, 8.0), ("0s", LOAD, 3.0), ("5s", COUNTED, 5.0)],
    ids=["half of the duration", "a moment", "at once", "by requests"],
)
def test_the_kill_comes_in_the_measured_part(after: str | None, stages: tuple[Stage, ...], moment: float) -> None:
    """Its moment counts from the end of ramp and warm-up."""
    assert read_kill("kill 1", after, stages, one_way=True, stream=True) == KillOrder("kill 1", moment)


@pytest.mark.parametrize(
    ("command", "after", "stages", "one_way", "stream", "message"),
    [
        (None, "5s", LOAD, True, True, "--kill-after needs a --kill-replica"),
        ("x", None, COUNTED, True, True, "with --requests, say when"),
        ("x", "30s", LOAD, True, True, "--kill-after must be less than the 30 s of --duration"),
        ("x", None, LOAD * 2, True, True, "leave out --sweep"),
        ("x", None, LOAD, False, True, "leave out --sweep, --direct"),
        ("x", None, LOAD, True, False, "needs streams"),
    ],
)
def test_a_kill_that_cannot_be_measured_is_wrong_usage(
    command: str | None, after: str | None, stages: tuple[Stage, ...], one_way: bool, stream: bool, message: str
) -> None:
    """The message says what to change."""
    with pytest.raises(UsageError, match=message):
        read_kill(command, after, stages, one_way=one_way, stream=stream)


def test_no_kill_is_the_usual() -> None:
    """Nothing is counted then."""
    assert read_kill(None, None, LOAD, one_way=False, stream=False) is None
