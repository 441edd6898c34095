"""`aiaas loadtest --kill-replica` on `aiaas serve` in front of two simulators: it counts what clients saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import MODEL, Gateway, running, status_of, wait_for
from tests.ports import free_port

USERS = 12
# Answers take 3 s and the kill comes after 2 s: every first answer is in flight then, and a second round follows.
LOAD = ("--users", str(USERS), "--prompt-tokens", "10", "--output-tokens", "150", "--duration", "4s")


@contextmanager
def replica(log: Path, *options: str) -> Iterator[tuple[str, int]]:
    """The URL and the process id of a simulator whose answers take three seconds."""
    port = free_port()
    command = [sys.executable, "-m", "aiaas", "simulate", "--port", str(port), "--served-model-name", MODEL,
               "--ttft", "10ms", "--itl", "20ms", *options]  # fmt: skip
    with running(command, log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: status_of(url + "/health") == 200, 60, process, log)
        yield url, psutil.Process(process.pid).children()[0].pid


def loadtest(gateway: Gateway, command: str) -> tuple[int, dict[str, Any]]:
    """A run's exit code, and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "aiaas", "loadtest", gateway.url, *LOAD, "--kill-replica", command, "-o", "json"],
        env=os.environ | {"AIAAS_API_KEY": gateway.key}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found["killed"]


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest, start_gateway: StartGateway) -> Iterator[tuple[Gateway, int]]:
    """A gateway in front of two simulators, and the process id of the first, which has the options of the test."""
    with (
        replica(tmp_path / "one.log", *getattr(request, "param", ())) as (one, pid),
        replica(tmp_path / "two.log") as (two, _),
        start_gateway({"urls": [one, two]}) as gateway,
    ):
        yield gateway, pid


def test_a_killed_replica_loses_its_streams(pair: tuple[Gateway, int]) -> None:
    """Without resume each of them ends in an error event, and nothing is silently short; later requests are whole."""
    gateway, pid = pair
    code, found = loadtest(gateway, f"kill -9 {pid}")
    flying = found["in_flight"]
    assert (code, found["held"], found["kill"]["code"]) == (1, False, 0)
    assert flying["requests"] == USERS
    assert 0 < found["lost"] == flying["error_events"] < USERS
    assert flying["whole"] == USERS - found["lost"]
    assert found["spoiled_by"] == {}
    assert found["later"]["whole"] >= USERS - found["lost"]


def test_command_that_kills_nothing_loses_no_stream(pair: tuple[Gateway, int]) -> None:
    """Every stream is one answer: one id, one role, one end, all of its tokens."""
    gateway, _ = pair
    code, found = loadtest(gateway, "true")
    assert (code, found["held"], found["lost"]) == (0, True, 0)
    assert found["in_flight"]["whole"] == found["in_flight"]["requests"] == USERS
    assert found["later"]["whole"] == found["later"]["requests"] > 0
    assert found["gaps"]["count"] == USERS


def test_command_that_fails_is_exit_1(pair: tuple[Gateway, int]) -> None:
    """Perhaps nothing was killed, so the run proves nothing."""
    code, found = loadtest(pair[0], "exit 9")
    assert (code, found["held"], found["lost"], found["kill"]["code"]) == (1, False, 0, 9)


@pytest.mark.parametrize("pair", [("--fault", "abort-mid-stream,sigterm")], indirect=True, ids=["abort"])
def test_an_answer_that_only_looks_whole_is_found(pair: tuple[Gateway, int]) -> None:
    """At SIGTERM a vLLM may end its streams with `finish_reason: abort`: no client's error, and too few tokens."""
    gateway, pid = pair
    code, found = loadtest(gateway, f"kill {pid}")
    assert code == 1
    assert 0 < found["in_flight"]["spoiled"] == found["spoiled_by"]["completion_tokens"]
    assert found["spoiled_by"]["finish_reason"] == found["in_flight"]["spoiled"]
