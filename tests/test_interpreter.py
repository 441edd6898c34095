"""aiaas.interpreter: how a Python process of ours is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiaas.interpreter import options_in, python_command, python_options

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("looks_here", "runs"), [(False, False), (True, True)])
def test_child_process_imports_no_module_beside_the_config(tmp_path: Path, looks_here: bool, runs: bool) -> None:
    """Unless the gateway itself was started with that folder on its path."""
    (tmp_path / "uvloop.py").write_text("raise SystemExit('of the folder')")
    options = options_in([str(tmp_path)] if looks_here else [], str(tmp_path))
    command = [sys.executable, *options, "-m", "aiaas.cli.gateway", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20, check=False)
    assert ("of the folder" in done.stderr) == runs


def test_command_runs_the_module_under_this_interpreter() -> None:
    """With the options of this process and its folder."""
    assert python_command("aiaas.x") == (sys.executable, *python_options(), "-m", "aiaas.x")


def test_removed_working_folder_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config can be read again after that."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert python_options() == ("-P",)
