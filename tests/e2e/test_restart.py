"""A restart without Kubernetes: the old gateway ends its streams while the new one serves on the same ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.processes import ALIAS, MODEL, eventually, keys, metric, running, running_simulator, status_of
from tests.ports import free_port

pytestmark = pytest.mark.timeout(240)

STREAMS = 3
TOKENS = 400  # 20 ms each: the old gateway drains for seconds


class Machine:
    """A folder with a config, and the gateways that were started in it, one after another."""

    def __init__(self, folder: Path, config: dict[str, object], port: int, metrics_port: int) -> None:
        self.folder, self.port, self.metrics_port = folder, port, metrics_port
        self.write(config)
        self.key = keys(folder, "create", "e2e")
        self.started: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def serve(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start `aiaas serve` without waiting for it."""
        number = len(self.started) + 1
        command = [sys.executable, "-m", "aiaas", "serve", "-c", str(self.folder / "aiaas.yaml")]
        environment = {name: value for name, value in os.environ.items() if name != "KUBERNETES_SERVICE_HOST"}
        stdout, stderr = self.folder / f"stdout{number}", self.folder / f"stderr{number}"
        with running(command, stderr, environment, stdout=stdout, grace=15) as process:
            self.started.append(process)
            yield process

    def write(self, config: dict[str, object]) -> None:
        """Replace the config."""
        (self.folder / "aiaas.new").write_text(yaml.safe_dump(config))
        (self.folder / "aiaas.new").replace(self.folder / "aiaas.yaml")

    def log(self, number: int) -> str:
        """The log of the gateway of this number."""
        file = self.folder / f"stdout{number}"
        return file.read_text() if file.exists() else ""

    def said(self, number: int, event: str) -> bool:
        """Whether the gateway of this number has logged an event."""
        return f'"event":"{event}"' in self.log(number)

    def until(self, number: int, event: str) -> None:
        eventually(lambda: self.said(number, event), 40)

    def request(self, tokens: int, *, stream: bool) -> bytes:
        body = json.dumps({"model": ALIAS, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens,
                           "stream": stream, "ignore_eos": True}).encode()  # fmt: skip
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    def ask(self, tokens: int, *, stream: bool, begun: Callable[[], object] = lambda: None) -> bytes:
        """One request on a connection of its own: the whole answer."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as sock:
            sock.sendall(self.request(tokens, stream=stream))
            answer = b""
            while data := sock.recv(65536):
                if not answer:
                    begun()
                answer += data
        return answer


class Clients:
    """STREAMS long streams, and a client that asks again and again on new connections."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._begun = threading.Barrier(STREAMS + 1)
        self._over = threading.Event()
        self.answers: list[bytes] = []
        self.outcomes: list[tuple[float, str]] = []
        self._streams = [threading.Thread(target=self._stream) for _ in range(STREAMS)]
        self._asker = threading.Thread(target=self._ask)

    def __enter__(self) -> Clients:
        for thread in self._streams:
            thread.start()
        self._begun.wait(30)
        self._asker.start()
        eventually(lambda: self.outcomes, 10)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop asking, and wait for the streams."""
        self._over.set()
        for thread in (self._asker, *self._streams):
            thread.join(90)

    def _stream(self) -> None:
        self.answers.append(self._machine.ask(TOKENS, stream=True, begun=lambda: self._begun.wait(30)))

    def _ask(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                answer = self._machine.ask(1, stream=False)
            except ConnectionRefusedError:
                outcome = "refused"
            except OSError as error:
                outcome = type(error).__name__
            else:
                outcome = answer[9:12].decode() or "closed"
            self.outcomes.append((began, outcome))
            time.sleep(0.002)

    def gap(self) -> tuple[float, set[str]]:
        """Seconds between the answers around the restart, and the outcomes of requests in between."""
        failed = [began for began, outcome in self.outcomes if outcome != "200"]
        if not failed:
            return 0.0, set()
        good = [began for began, outcome in self.outcomes if outcome == "200"]
        first, last = min(failed), max(failed)
        after = min(began for began in good if began > last)
        return after - max(began for began in good if began < first), {o for _, o in self.outcomes if o != "200"}


def config_of(backend: dict[str, object], workers: int) -> tuple[dict[str, object], int, int]:
    port, metrics_port = free_port(), free_port()
    config: dict[str, object] = {
        "server": {"host": "127.0.0.1", "port": port, "workers": workers, "drain_timeout": "90s"},
        "backends": {"vllm": {"models": [MODEL, ALIAS], **backend}},
        "auth": {"keys_file": "keys.yaml"},
        "rate_limit": {"requests_per_minute": 1_000_000},
        "monitoring": {"metrics_port": metrics_port, "admin_port": 0},
    }
    return config, port, metrics_port


def all_whole(answers: list[bytes]) -> bool:
    """Whether each stream has all its tokens and its last event."""
    return len(answers) == STREAMS and all(
        answer.count(b'"content"') >= TOKENS and b"data: [DONE]" in answer for answer in answers
    )


def terminate(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the gateway under its launcher."""
    psutil.Process(process.pid).children()[0].send_signal(signal.SIGTERM)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("order", ["stopped first", "started first"])
def test_a_restart_breaks_no_stream_and_serves_new_requests(tmp_path: Path, order: str, workers: int) -> None:
    """The old process ends its streams, the new one has both ports; only refused connections fail."""
    for itl in ("20ms", "150ms"):  # on a busy machine the new process may start later than quick streams end
        folder = tmp_path / itl
        folder.mkdir()
        if restart_overlaps(folder, order, workers, itl):
            return
    pytest.fail("the old process had ended before the new one started, so nothing was tested")


def restart_overlaps(folder: Path, order: str, workers: int, itl: str) -> bool:
    """Restart a gateway while its streams run; False if these had ended before the new one served."""
    with running_simulator(folder / "simulator", "--itl", itl) as engine:
        machine = Machine(folder, *config_of({"url": engine}, workers))
        with machine.serve() as old:
            machine.until(1, "started")
            with Clients(machine) as clients:
                if order == "stopped first":
                    terminate(old)
                with machine.serve() as new:
                    if order == "started first":
                        machine.until(2, "waiting_for_port")
                        terminate(old)
                    machine.until(2, "started")
                    if old.poll() is not None:
                        return False
                    asked = len(clients.outcomes)
                    eventually(lambda: len(clients.outcomes) > asked + 5, 20)
                    assert status_of(f"http://127.0.0.1:{machine.port}/ready") == 200
                    url = f"http://127.0.0.1:{machine.metrics_port}/metrics"
                    assert metric(url, "inference_requests_total", status="success") > 0
                    assert metric(url, "aiaas_requests_in_flight") <= 1  # the old process has the streams
                    assert old.wait(90) == 0
                    assert new.poll() is None
                    clients.end()
            gap, failed = clients.gap()
            print(f"{order}, {workers} workers: {gap * 1000:.0f} ms without an answer, meanwhile {failed or 'nothing'}")
            assert all_whole(clients.answers)
            assert failed <= {"refused", "ConnectionResetError"}
            assert not machine.said(1, "internal_error")
            assert not machine.said(2, "internal_error")
    return True


def test_a_new_gateway_waits_for_the_engine_of_the_old_one(tmp_path: Path) -> None:
    """The engine's port and memory are needed to the end of the last stream; then the model is served again."""
    args = {"itl": "20ms", "ttft": "10ms"}
    machine = Machine(tmp_path, *config_of({"engine": {"kind": "simulator", "port": free_port(), "args": args}}, 1))
    with machine.serve() as old:
        eventually(lambda: "healthy after" in machine.log(1), 40)
        stream = threading.Thread(target=lambda: answers.append(machine.ask(TOKENS, stream=True, begun=begun.set)))
        begun, answers = threading.Event(), list[bytes]()
        stream.start()
        assert begun.wait(20)
        terminate(old)
        with machine.serve() as new:
            machine.until(2, "started")
            eventually(lambda: "another aiaas still runs an engine on port" in machine.log(2), 20)
            assert machine.ask(1, stream=False).startswith(b"HTTP/1.1 503")
            stream.join(60)
            assert old.wait(60) == 0
            eventually(lambda: machine.ask(1, stream=False).startswith(b"HTTP/1.1 200"), 40)
            assert new.poll() is None
    assert answers[0].count(b'"content"') >= TOKENS
    assert b"data: [DONE]" in answers[0]
    assert not machine.said(2, "engine_died")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_port(tmp_path: Path, number: signal.Signals) -> None:
    """At once, with exit code 0 or that of an interrupt."""
    machine = Machine(tmp_path, *config_of({"url": "http://127.0.0.1:9"}, 1))
    with socket.create_server(("127.0.0.1", machine.port)), machine.serve() as process:
        machine.until(1, "waiting_for_port")
        psutil.Process(process.pid).children()[0].send_signal(number)
        assert process.wait(3) in (0, 130)
    assert "Traceback" not in (tmp_path / "stderr1").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_fixed_engine_arguments_are_applied_by_a_reload(tmp_path: Path, workers: int) -> None:
    """Without a restart, whether the engine was in its crash loop or given up; and the log said the fault."""
    engine = {"kind": "simulator", "port": free_port(), "args": {"max-model-len": "many"}}
    config, port, metrics_port = config_of({"engine": engine}, workers)
    machine = Machine(tmp_path, config, port, metrics_port)
    with machine.serve():
        machine.until(1, "engine_died")
        (died, *_) = [json.loads(line) for line in machine.log(1).splitlines() if '"engine_died"' in line]
        assert "--max-model-len" in died["cause"]
        assert died["level"] == "error"
        assert machine.ask(1, stream=False).startswith(b"HTTP/1.1 503")
        engine["args"] = {"max-model-len": 2048}
        machine.write(config)
        eventually(lambda: machine.ask(1, stream=False).startswith(b"HTTP/1.1 200"), 40)
        assert not machine.said(1, "restart_needed")
        engine["args"] = {"max-model-len": 1024}
        machine.write(config)
        machine.until(1, "restart_needed")
        assert machine.ask(1, stream=False).startswith(b"HTTP/1.1 200")
        assert machine.log(1).count("healthy after") == 1
