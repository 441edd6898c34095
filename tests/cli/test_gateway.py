"""aiaas.cli.gateway: the program that `aiaas serve` becomes. As a process: tests/cli/test_serve.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aiaas.cli.gateway import main

STARTED = """
import os, signal, sys
from aiaas.cli.gateway import main

os.dup2(os.open(os.devnull, os.O_RDONLY), 9)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background of a shell has it ignored
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
os.kill(os.getpid(), signal.{name})
sys.exit(main(["9", "json"]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_signal_from_before_its_start_ends_it(name: str, code: int) -> None:
    """`aiaas serve` has held it back; it ends the process without a word."""
    script = STARTED.format(name=name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_it_imports_nothing_that_reads_configs() -> None:
    """Neither the command line's library nor the config's model nor, without a database of usage, SQLite."""
    script = "import sys, aiaas.cli.gateway, aiaas.cli.worker\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    loaded = done.stdout.split()
    assert "aiohttp" in loaded
    unwanted = ("typer", "rich", "pydantic", "aiaas.config.model", "aiaas.plan.read", "aiaas.engines.supervisor")
    assert [name for name in unwanted if name in loaded] == []


def test_descriptor_without_a_plan_is_an_internal_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, as for every error; nobody but `aiaas serve` starts this program."""
    assert main(["not a number", "json"]) == 70
    assert "internal error: ValueError" in capsys.readouterr().err
