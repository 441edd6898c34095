"""Fixtures and settings of every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fakes.redis import RedisServer
from tests.keymaterial import leaks_below

# No deadline: the machines are shared, and a slow example is not a wrong one (pytest-timeout bounds the whole test).
# Derandomized: a red CI must be red again when it is looked into.
settings.register_profile("aiaas", deadline=None, derandomize=True)
settings.load_profile("aiaas")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing that a process of this run has written may hold key material (`keymaterial.py`)."""
    folders = getattr(session.config, "_tmp_path_factory", None)
    if folders is None or hasattr(session.config, "workerinput"):  # with several workers theirs lie below the first's
        return
    leaks = leaks_below(folders.getbasetemp())
    if leaks:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_sep("=", "key material in what processes wrote", red=True)
        for leak in leaks:
            reporter.write_line(leak)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for the tests of one module, empty at its start."""
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder)
    server.start()
    yield server
    server.end()
