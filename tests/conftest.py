"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fakes.redis import RedisServer

# No deadline: the machines are shared, and a slow example is not a wrong one (pytest-timeout bounds the whole test).
# Derandomized: a red CI must be red again when it is looked into.
settings.register_profile("aiaas", deadline=None, derandomize=True)
settings.load_profile("aiaas")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for the tests of one module, empty at its start."""
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder)
    server.start()
    yield server
    server.end()
