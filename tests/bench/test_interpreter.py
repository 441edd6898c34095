"""tests/bench/interpreter.py: which Python it was."""

from __future__ import annotations

import platform
import sys

import pytest

from tests.bench.interpreter import described, in_words
from tests.bench.process import NotStartedError


@pytest.mark.parametrize(
    ("prefix", "options", "said"),
    [
        pytest.param("/opt/python", "'--enable-optimizations' '--with-lto'", "built with PGO, with LTO", id="both"),
        pytest.param("/opt/python", "'--enable-optimizations'", "built with PGO, without LTO", id="PGO only"),
        pytest.param("/opt/python", "'--enable-shared'", "built without PGO, without LTO", id="neither"),
        pytest.param("/usr", "'--enable-shared'", "the distribution's package", id="a distribution's"),
    ],
)
def test_build_is_read_from_the_configure_options(prefix: str, options: str, said: str) -> None:
    """PGO alone makes 8 % of the instructions."""
    assert in_words("3.11.2", prefix, options).startswith(f"3.11.2 ({said}")


def test_running_interpreter_is_described_with_its_version() -> None:
    """It is asked itself, as another one is."""
    assert described(sys.executable).startswith(platform.python_version() + " (")


def test_missing_interpreter_is_an_error_in_words() -> None:
    """Before anything is measured."""
    with pytest.raises(NotStartedError, match="/nowhere/python does not run"):
        described("/nowhere/python")
