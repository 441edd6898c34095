"""`aiaas validate --connect`: the shared store's answer, from a real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aiaas.cli.askstore import ask_store
from aiaas.plan.read import read
from tests.fakes.redis import RedisServer
from tests.ports import free_port


def asked(folder: Path, store: str) -> tuple[list[str], list[str]]:
    """The problems and the lines for a store."""
    text = f"backends: {{v: {{url: 'http://v:8000', models: [m]}}}}\nrate_limit: {{store: '{store}'}}\n"
    (folder / "aiaas.yaml").write_text(text)
    problems, lines = ask_store(read(folder / "aiaas.yaml", {"PASSWORD": "right", "WRONG": "hunter2"}))
    return [str(problem) for problem in problems], lines


def test_a_store_that_answers_is_named_with_its_version(tmp_path: Path) -> None:
    """With the password from the environment, which nothing shows; a wrong one is the store's own refusal."""
    server = RedisServer(tmp_path, "--requirepass", "right")
    server.start()
    try:
        address = f"127.0.0.1:{server.port}/0"
        problems, [line] = asked(tmp_path, f"redis://:${{PASSWORD}}@{address}")
        assert problems == []
        assert re.fullmatch(rf"rate_limit.store: redis://{address}: (Redis|Valkey) [0-9.]+, PING in [0-9.]+ ms", line)
        [problem], lines = asked(tmp_path, f"redis://:${{WRONG}}@{address}")
        assert lines == []
        assert "error AIA605 rate_limit.store: " in problem
        assert "refused the connection: " in problem
        assert "hunter2" not in problem
        [problem], _ = asked(tmp_path, f"redis://{address}")
        assert "NOAUTH" in problem
    finally:
        server.end()


def test_a_store_that_is_away_is_a_problem(tmp_path: Path) -> None:
    """With the connection's error, at its field."""
    [problem], lines = asked(tmp_path, f"redis://127.0.0.1:{free_port()}/0")
    assert lines == []
    assert "aiaas.yaml:2:21: error AIA605 rate_limit.store: cannot connect to redis://127.0.0.1:" in problem


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_a_store_of_several_servers_is_asked_through_them(kind: str, tmp_path: Path) -> None:
    """Nobody at all is there."""
    name = "mymaster" if kind == "sentinel" else "0"
    place = f"127.0.0.1:{free_port()}"
    address = f"redis+sentinel://{place}/{name}/0" if kind == "sentinel" else f"redis+cluster://{place}"
    [problem], _ = asked(tmp_path, address)
    assert "error AIA605 rate_limit.store: " in problem


def test_counts_in_memory_have_no_store(tmp_path: Path) -> None:
    """Nothing is asked."""
    assert asked(tmp_path, "memory") == ([], [])
