"""`aiaas loadtest --fairness`, as a process against a real gateway before a simulator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_loadtest import AIAAS, aiaas
from tests.e2e.processes import MODEL, Gateway, keys, running_gateway, running_simulator

LOAD = ("--duration", "2s", "--rate", "7", "--arrival", "constant", "--users", "64", "--output-tokens", "40")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a simulator with 4 places: 40 tokens take 0.22 s, so 64 clients wait 3.5 s in order of arrival."""
    log = tmp_path_factory.mktemp("engine") / "log"
    with running_simulator(log, "--max-num-seqs", "4", "--itl", "5ms", "--ttft", "20ms") as url:
        yield url


def backend(engine: str, bound: int | None) -> dict[str, Any]:
    """A backend that lets `bound` requests at once into the engine."""
    return {"url": engine, "models": [MODEL], "max_inflight": bound}


def two_keys(gateway: Gateway, heavy: str) -> dict[str, str]:
    """The environment that names a light and a heavy key."""
    return {"AIAAS_API_KEY": gateway.key, "AIAAS_HEAVY_API_KEY": heavy}


def test_keys_that_take_turns_are_fair(engine: str, tmp_path: Path) -> None:
    """Tables on stdout, exit 0; the keys come from files and are not shown."""
    heavy, files = keys(tmp_path, "create", "heavy"), (tmp_path / "light.key", tmp_path / "heavy.key")
    with running_gateway(tmp_path, backend(engine, 4)) as gateway:
        secrets = (gateway.key, heavy)
        for file, secret in zip(files, secrets, strict=True):
            file.write_text(secret)
        given = ("--api-key-file", str(files[0]), "--heavy-key-file", str(files[1]))
        done = aiaas("loadtest", gateway.url, "--fairness", *given, *LOAD)
    for file in files:
        file.unlink()  # a key in a file that a test leaves behind counts as leaked
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^light, beside +\S+ m?s +\S+ m?s .* 14 +14 ", done.stdout, re.MULTILINE), done.stdout
    assert "Verdict: fair\n" in done.stdout
    assert "the light key alone for 2 s" in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in secrets)


def test_keys_that_wait_in_order_of_arrival_are_not_fair(engine: str, tmp_path: Path) -> None:
    """Without a bound the engine queues the requests: exit 1, as JSON, and the config's lack is named."""
    heavy, config = keys(tmp_path, "create", "heavy"), str(tmp_path / "aiaas.yaml")
    with running_gateway(tmp_path, backend(engine, None)) as gateway:
        given = two_keys(gateway, heavy)
        done = aiaas("loadtest", "--fairness", "-c", config, *LOAD, "-o", "json", **given)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["fair"] is False
    assert found["light_beside"]["ttft"]["p95"] > 1.5
    assert found["light_alone"]["ttft"]["p95"] < found["light_beside"]["ttft"]["p95"] / 2
    assert found["heavy_beside"]["tokens_per_second"] > 100
    assert any("backends.vllm.max_inflight is not set" in remark for remark in found["remarks"])


def test_ctrl_c_leaves_nothing_behind(engine: str, tmp_path: Path) -> None:
    """Exit 130 with the figures so far; the engine generates for nobody."""
    heavy = keys(tmp_path, "create", "heavy")
    with running_gateway(tmp_path, backend(engine, 4)) as gateway:
        environment = os.environ | two_keys(gateway, heavy)
        command = [*AIAAS, "loadtest", gateway.url, "--fairness", *LOAD, "--output-tokens", "1500"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and gateway.metric("aiaas_requests_queued") < 50:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        while time.monotonic() < deadline and gateway.metric("aiaas_requests_in_flight"):
            time.sleep(0.05)
        assert gateway.metric("aiaas_requests_in_flight") == 0
    assert process.returncode == 130, stderr
    assert re.search(r"^light, alone .* 14 ", stdout, re.MULTILINE), stdout
    assert "Verdict" not in stdout
    assert "no verdict: Ctrl-C ended the test" in stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        pytest.param(("--fairness",), {}, "--fairness needs a light key: --api-key-file or $AIAAS_API_KEY", id="light"),
        pytest.param(("--fairness",), {"AIAAS_API_KEY": "sk-1"}, "--fairness needs a heavy key", id="heavy"),
        pytest.param(
            ("--fairness",),
            {"AIAAS_API_KEY": "sk-1", "AIAAS_HEAVY_API_KEY": "sk-1"},
            "the heavy key $AIAAS_HEAVY_API_KEY is the light key",
            id="the same key",
        ),
        pytest.param(("--heavy-key-file", "/no/such"), {}, "--heavy-key-file needs --fairness", id="no fairness"),
        pytest.param(("--fairness", "--sweep", "users=1-2"), {}, "--sweep has no effect with --fairness", id="sweep"),
        pytest.param(("--fairness", "--no-stream"), {}, "--no-stream has no effect with --fairness", id="stream"),
        pytest.param(("--fairness", "--check-limits"), {}, "--check-limits has no effect", id="check limits"),
        pytest.param(
            ("--fairness", "--duration", "0s"),
            {"AIAAS_API_KEY": "sk-1", "AIAAS_HEAVY_API_KEY": "sk-2"},
            "--duration must be longer than 0",
            id="no time",
        ),
        pytest.param(
            ("--fairness", "--duration", "3s"),
            {"AIAAS_API_KEY": "sk-1", "AIAAS_HEAVY_API_KEY": "sk-2"},
            "--rate 1 for 3 s gives about 3 requests of the light key, and a verdict takes 10",
            id="too few requests",
        ),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], environment: dict[str, str], message: str) -> None:
    """Before anything is sent; a key is not shown."""
    done = aiaas("loadtest", "http://127.0.0.1:1", *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "sk-1" not in done.stderr


def test_two_light_keys_are_refused(tmp_path: Path) -> None:
    """Several heavy keys are allowed, several light ones are not."""
    files = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"sk-{name}")
        files += ["--api-key-file", str(tmp_path / name)]
    done = aiaas("loadtest", "http://127.0.0.1:1", "--fairness", *files, AIAAS_HEAVY_API_KEY="sk-2")
    assert done.returncode == 2
    assert "--fairness takes one light key" in done.stderr


def test_nobody_there_is_exit_3() -> None:
    """One line with a hint, with both keys from the environment."""
    given = {"AIAAS_API_KEY": "sk-1", "AIAAS_HEAVY_API_KEY": "sk-2"}
    done = aiaas("loadtest", "http://127.0.0.1:1", "--fairness", **given)
    assert (done.returncode, done.stdout) == (3, "")
    assert "connection refused; is the server running, and is the URL right?" in done.stderr


def test_an_unknown_heavy_key_is_named(engine: str, tmp_path: Path) -> None:
    """Exit 1 before the load, with the key's label."""
    with running_gateway(tmp_path, backend(engine, 4)) as gateway:
        done = aiaas("loadtest", gateway.url, "--fairness", **two_keys(gateway, "sk-wrong"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the heavy key ($AIAAS_HEAVY_API_KEY): " in done.stderr
    assert "refuses the key" in done.stderr
    assert "sk-wrong" not in done.stderr
