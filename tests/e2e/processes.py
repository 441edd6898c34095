"""Real processes for the end-to-end tests: vLLM, the simulator, the gateway. Whatever happens, they are stopped.

Each runs under `aiaas.engines.launch`, which kills its whole tree when the test run ends, even by SIGKILL.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from aiaas.engines import launch
from tests.ports import free_port

MODEL = "unsloth/gpt-oss-20b"  # what the engine serves, and the plan's alias of it
ALIAS = "gpt-oss-20b"
CROWDED_KEY = "sk-wire"
CROWDED = ("--max-num-seqs", "1", "--max-num-queued-reqs", "3", "--api-key", CROWDED_KEY, "--enable-request-id-headers")
INTERVAL = ("--stream-interval", "8")
CALLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
VLLM_OPTIONS = ("--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager")
START_WITHIN = 500.0  # seconds; less than the `--timeout` of nox -s vllm
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # Otherwise the first request with logprobs compiles C++ for 30 s while the whole engine stands still.
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True)
class Engine:
    """A running vLLM or simulator: `url` without a path; `api_key` asked for below /v1, or None."""

    kind: str
    url: str
    api_key: str | None = None

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        return metric(self.url + "/metrics", name)


@dataclass
class Gateway:
    """A running `aiaas serve`.

    key      made by `aiaas keys create`, without limits of its own
    folder   holds aiaas.yaml, keys.yaml, stdout.log (one JSON line a request) and stderr.log
    process  the launcher, which passes SIGTERM and the exit code on; `pid` is the gateway itself
    """

    url: str
    metrics_url: str
    key: str
    folder: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """The process id of `aiaas serve`."""
        return psutil.Process(self.process.pid).children()[0].pid

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples that bear these labels."""
        return metric(self.metrics_url, name, **labels)

    def requests(self) -> list[dict[str, Any]]:
        """The access log so far."""
        lines = [json.loads(line) for line in (self.folder / "stdout.log").read_text().splitlines()]
        return [line for line in lines if line.get("event") == "inference_request"]

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(timeout)


@contextmanager
def running_vllm(log: Path, model: Path, vllm: Path, *options: str) -> Iterator[str]:
    """The URL of a real vLLM, healthy; 25 to 45 s until then, and minutes beside other work, since it is nice."""
    port = free_port()
    command = ["nice", "-n", "10", str(vllm), "serve", str(model), "--served-model-name", MODEL,
               "--host", "127.0.0.1", "--port", str(port), *VLLM_OPTIONS, *options]  # fmt: skip
    with running(command, log, os.environ | VLLM_ENVIRONMENT) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: status_of(url + "/health") == 200, START_WITHIN, process, log)
        yield url


@contextmanager
def running_simulator(log: Path, *options: str) -> Iterator[str]:
    """The URL of `aiaas simulate`, quick, with vLLM's own test limits."""
    command = [sys.executable, "-m", "aiaas", "simulate", "--port", "0", "--served-model-name", MODEL,
               "--max-model-len", "2048", "--ttft", "10ms", "--itl", "2ms", *options]  # fmt: skip
    with running(command, log) as process:
        address = re.compile(r"http://127\.0\.0\.1:\d+")
        wait_for(lambda: address.search(log.read_text()), 60, process, log)
        found = address.search(log.read_text())
        assert found
        yield found[0]


@contextmanager
def running_gateway(
    folder: Path,
    backend: Mapping[str, Any],
    *,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
    ready_within: float = 60,
    prefix: Sequence[str] = (),
) -> Iterator[Gateway]:
    """`aiaas serve` with one backend named `vllm`; `sections` are merged over the test's own config, and the command
    runs behind `prefix`."""
    port, metrics_port, admin_port = free_port(), free_port(), free_port()
    config: dict[str, Any] = {
        "server": {"host": "127.0.0.1", "port": port, "drain_timeout": "5s"},
        "backends": {"vllm": {"models": [MODEL, ALIAS], **backend}},
        "auth": {"keys_file": "keys.yaml"},
        "rate_limit": {"requests_per_minute": 100_000},
        "monitoring": {"metrics_port": metrics_port, "admin_port": admin_port},
    }
    for name, section in (sections or {}).items():
        config[name] = {**config.get(name, {}), **section}
    (folder / "aiaas.yaml").write_text(yaml.safe_dump(config))
    key = keys(folder, "create", "e2e")
    log = folder / "stderr.log"
    command = [*prefix, sys.executable, "-m", "aiaas", "serve", "-c", str(folder / "aiaas.yaml")]
    environ = os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {})
    with running(command, log, environ, stdout=folder / "stdout.log", grace=15) as process:
        tls = "tls" in config["server"]
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        # Its own message first: another server might answer on the port.
        said = folder / "stdout.log"
        wait_for(lambda: '"event":"started"' in said.read_text(), ready_within, process, log)
        wait_for(lambda: tls or status_of(url + "/ready") == 200, ready_within, process, log)
        yield Gateway(url, f"http://127.0.0.1:{metrics_port}/metrics", key, folder, process)


def keys(folder: Path, *arguments: str, stdin: str = "") -> str:
    """Run an `aiaas keys` command for the folder's key file and return its output."""
    command = [sys.executable, "-m", "aiaas", "keys", *arguments, "--keys-file", str(folder / "keys.yaml")]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    stdout: Path | None = None,
    grace: float = 0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process under the launcher, its output in `log`, or only its stderr where `stdout` is a file of its own.

    In the end it has `grace` seconds after SIGTERM to leave; then its whole tree is killed.
    """
    launched = [sys.executable, "-I", launch.__file__, *command]
    with ExitStack() as files:
        error = files.enter_context(log.open("wb"))
        output = files.enter_context(stdout.open("wb")) if stdout is not None else error
        process = files.enter_context(
            subprocess.Popen(launched, stdin=subprocess.PIPE, stdout=output, stderr=error, env=environment)
        )
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            process.stdin.close()
            process.wait(15)


def wait_for(holds: Callable[[], object], timeout: float, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `holds()`; fail with the log's end when the process ends first or it takes too long."""
    deadline = time.monotonic() + timeout
    while not holds():
        ended = process.poll()
        if ended is not None or time.monotonic() > deadline:
            reason = f"ended with {ended}" if ended is not None else f"not up after {timeout:.0f} s"
            raise AssertionError(f"{reason}:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def eventually(holds: Callable[[], object], within: float) -> float:
    """Seconds until `holds()` is true; fails if it is not true when it is looked at after `within`.

    The time of the look itself does not count: a busy vLLM needs seconds to show its metrics.
    """
    started = looked = time.monotonic()
    while not holds():
        assert looked - started < within, f"not so after {within} s"
        time.sleep(0.02)
        looked = time.monotonic()
    return time.monotonic() - started


def status_of(url: str) -> int | None:
    """Status of a GET, or None without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def metric(url: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples with these labels; 0 if it has none yet."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(r"([a-zA-Z_:0-9]+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and all(f'{key}="{value}"' in (found[2] or "") for key, value in labels.items()):
            total += float(found[3])
    return total
