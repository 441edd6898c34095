"""`aiaas serve` as a process: exit codes, output, signals, a stuck reader of its log."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tests.ports import free_port

ROOT = Path(__file__).parents[2]


def write_config(folder: Path, **sections: Any) -> tuple[Path, int]:
    """A config without a living backend and without authentication; its path and its port."""
    port = free_port()
    config: dict[str, Any] = {
        "server": {"host": "127.0.0.1", "port": port},
        "backends": {"vllm": {"url": "http://127.0.0.1:9", "models": ["m"]}},
        "auth": {"enabled": False},
        "monitoring": {"prometheus": False, "admin_port": 0},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    path = folder / "aiaas.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, int(config["server"]["port"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "aiaas", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `aiaas serve`; whatever is left at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(config: Path, *options: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "aiaas", "serve", "-c", str(config), *options]
        processes.append(subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def wait_until_up(port: int, seconds: float = 60.0) -> None:
    """Wait until /health answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert get(port, "/health")[0] == 200
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def get(port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_it_serves_until_it_is_asked_to_stop(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]], number: int
) -> None:
    """Exit code 0; stdout holds JSON lines only, stderr one line for the person (and the config's warnings)."""
    config, port = write_config(tmp_path)
    process = start(config)
    wait_until_up(port)
    status, body = get(port, "/v1/chat/completions", "POST", b'{"model": "m", "messages": [{"content": "PROMPT"}]}')
    assert (status, json.loads(body)["error"]["code"]) == (503, "no_healthy_backend")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in stdout.splitlines()]
    assert events[0] == "started"
    assert "inference_request" in events
    assert events[-1] == "stopped"
    assert b"PROMPT" not in stdout + stderr
    lines = stderr.decode().splitlines()
    assert lines[-1] == f"listening on http://127.0.0.1:{port} (0 keys)"
    assert all("warning" in line for line in lines[:-1]), lines


def test_a_missing_config_is_one_line_and_exit_3(tmp_path: Path) -> None:
    """The line names the file."""
    done = run("serve", "-c", str(tmp_path / "none.yaml"))
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "none.yaml" in done.stderr


def test_serve_without_the_c_parser_refuses_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp's parser in Python lets smuggled requests through."""
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    config, _ = write_config(tmp_path)
    done = run("serve", "-c", str(config))
    assert (done.returncode, done.stdout) == (3, "")
    assert "aiohttp runs without its C parser here" in done.stderr.splitlines()[-1]


def test_an_invalid_config_is_all_its_problems_and_exit_1(tmp_path: Path) -> None:
    """And no process was started."""
    config, _ = write_config(tmp_path, server={"colour": "blue"}, monitoring={"log_level": "loud"})
    done = run("serve", "-c", str(config))
    assert (done.returncode, done.stdout) == (1, "")
    *problems, last = done.stderr.splitlines()
    assert any("server.colour" in line for line in problems)
    assert any("monitoring.log_level" in line for line in problems)
    assert last.startswith("aiaas: ")
    assert "nothing was started" in last


@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_overlay_changes_a_limit(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]], workers: int
) -> None:
    """Of the running gateway, in each worker; a broken overlay keeps the limit, and the log names its line."""
    config, port = write_config(tmp_path, server={"workers": workers, "max_body_size": "1KiB"})
    overlay = tmp_path / "prod.yaml"
    overlay.write_text("server: {max_body_size: 2KiB}\n")
    process = start(config, "-c", str(overlay))
    wait_until_up(port)
    wait_until_refused(port, over=2048)
    overlay.write_text("server: {max_body_size: 4KiB}\n")
    wait_until_refused(port, over=4096)
    overlay.write_text("# by hand\nserver: {max_body_size: lots}\n")
    process.send_signal(signal.SIGHUP)
    lines = lines_of(process, "config_not_reloaded", workers)
    (started,) = (line for line in lines if line["event"] == "started")
    assert started["config"] == f"{config} + {overlay}"
    for line in lines:
        if line["event"] == "config_not_reloaded":
            assert [text.partition(": ")[0] for text in line["problems"] if " error " in text] == [f"{overlay}:2:25"]
    wait_until_refused(port, over=4096)
    process.terminate()
    assert process.wait(timeout=60) == 0


def wait_until_refused(port: int, over: int) -> None:
    """Wait until every worker answers 413 to a body beyond this size, and to none of this size: eight in a row."""
    deadline, in_a_row = time.monotonic() + 30, 0
    while in_a_row < 8:
        answers = [get(port, "/v1/chat/completions", "POST", b"{" + b" " * (size - 1))[0] for size in (over, over + 1)]
        in_a_row = in_a_row + 1 if answers == [400, 413] else 0
        assert time.monotonic() < deadline, answers


def lines_of(process: subprocess.Popen[bytes], event: str, times: int) -> list[dict[str, Any]]:
    """The log's lines up to the one in which this event has come so many times."""
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    while sum(line["event"] == event for line in lines) < times:
        lines.append(json.loads(process.stdout.readline()))
    return lines


@pytest.mark.parametrize("which", ["server", "metrics"])
def test_a_port_in_use_is_one_clear_line_and_exit_3(tmp_path: Path, which: str) -> None:
    """Without a traceback, and with the field to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if which == "server":
            config, _ = write_config(tmp_path, server={"port": port})
        else:
            config, _ = write_config(tmp_path, monitoring={"prometheus": True, "metrics_port": port, "admin_port": 0})
        done = run("serve", "-c", str(config))
    assert done.returncode == 3
    (waiting,) = map(json.loads, done.stdout.splitlines())  # a predecessor would let it go in a moment
    assert waiting["event"] == "waiting_for_port"
    field = "server.port" if which == "server" else "monitoring.metrics_port"
    assert done.stderr.splitlines()[-1] == (
        f"aiaas: cannot listen on 127.0.0.1:{port} ({field}): "
        "another program listens there; stop it or choose another port"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_key_file_is_one_line_and_exit_3(tmp_path: Path, workers: int) -> None:
    """The line has its place, once and not by each worker: every valid key would get a 401."""
    (tmp_path / "keys.yaml").write_text("version: 1\nkeys:\n- name: [\n")
    config, port = write_config(tmp_path, auth={"enabled": True}, server={"workers": workers})
    done = run("serve", "-c", str(config))
    assert done.returncode == 3
    place = f"{tmp_path / 'keys.yaml'}:4:1"
    assert [line for line in done.stderr.splitlines() if "not YAML" in line] == [
        f"aiaas: auth.keys_file: {place}: not YAML: did not find expected node content "
        "(was it cut short, or merged with conflicts?)"
    ]
    assert "started" not in done.stdout
    with pytest.raises(OSError):
        get(port, "/ready")


def test_stuck_log_reader_does_not_stop_service_or_shutdown(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Requests go on while nobody reads stdout, and SIGTERM is obeyed within seconds."""
    config, port = write_config(tmp_path, rate_limit={"enabled": False})
    process = start(config)
    assert process.stdout is not None
    fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4096)
    wait_until_up(port)
    for _ in range(100):
        assert get(port, "/nowhere")[0] == 404
    started = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("workers", [1, 2])
def test_lines_on_a_terminal_are_readable_and_coloured(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Those of `aiaas logs`, from the supervisor and its workers."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    config, port = write_config(tmp_path, server={"workers": workers})
    ours, its = os.openpty()
    process = start(config, stdout=its)
    os.close(its)
    wait_until_up(port)
    assert get(port, "/nowhere")[0] == 404
    shown = b""
    while not (b"/nowhere" in shown and b"\x1b[1mstarted\x1b[0m" in shown):  # two processes write: in any order
        shown += os.read(ours, 65536)
    assert b"\x1b[33m404  \x1b[0m" in shown
    assert b'{"time"' not in shown
    process.terminate()
    assert process.wait(timeout=60) == 0
    os.close(ours)


@pytest.mark.parametrize("option", ["text", "json"])
def test_log_format_option_decides_in_a_pipe(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]], option: str
) -> None:
    """Text has no colours there."""
    config, port = write_config(tmp_path)
    process = start(config, "--log-format", option)
    wait_until_up(port)
    process.terminate()
    stdout, _ = process.communicate(timeout=60)
    first = stdout.splitlines()[0]
    assert b"started" in first
    assert (b'{"time"' in first) == (option == "json")
    assert b"\x1b" not in stdout


def test_sigterm_while_it_reads_the_config_ends_it() -> None:
    """By a handler: the kernel gives the first process of a container no default one."""
    script = """
import os, signal, time
from aiaas.cli import serve
from aiaas.cli.main import run

def read(_path):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)

serve.read_valid_plan = read
run(["serve"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_signals_wait_while_the_program_is_replaced() -> None:
    """The new program has no handler at first: a container's first process would lose them."""
    script = """
import os, signal
from aiaas.cli import serve

os.execv = lambda _path, _command: print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
serve.become_gateway("a plan", "json")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (str([signal.SIGINT, signal.SIGTERM]), "")


def test_gateway_keeps_the_process_and_has_no_code_for_configs(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The code for the command line and the config takes 25 MiB."""
    config, port = write_config(tmp_path)
    process = start(config)
    wait_until_up(port)
    files = Path(f"/proc/{process.pid}/maps").read_text()
    assert "uvloop" in files
    assert "pydantic" not in files


def test_log_reader_that_left_does_not_stop_the_gateway(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """`aiaas serve | head -1` goes on serving; stderr stays empty."""
    config, port = write_config(tmp_path)
    read_end, write_end = os.pipe()
    process = start(config, stdout=write_end)
    os.close(write_end)
    wait_until_up(port)
    os.close(read_end)
    for _ in range(5):
        assert get(port, "/nowhere")[0] == 404
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in stderr
    assert b"Broken pipe" not in stderr


# -- under systemd, of which the tests play the part ----------------------------------------------------------------


# Puts the descriptors where systemd puts them, and becomes `aiaas serve`.
PASS = """
import os, sys
numbers = [int(number) for number in sys.argv[1].split(",")]
for place, number in enumerate(numbers, 3):
    os.dup2(number, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)))
os.execv(sys.executable, [sys.executable, "-m", "aiaas", "serve", "-c", sys.argv[2]])
"""


@pytest.fixture
def start_passed(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `aiaas serve` with listening sockets from descriptor 3 on, and a socket for its reports."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(config: Path, sockets: list[socket.socket]) -> subprocess.Popen[bytes]:
        numbers = [sock.fileno() for sock in sockets]
        command = [sys.executable, "-c", PASS, ",".join(map(str, numbers)), str(config)]
        env = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000000"}
        process = subprocess.Popen(command, env=env, pass_fds=numbers, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def until_ready(manager: socket.socket) -> bytes:
    """Wait for READY=1, as systemd does."""
    while not (report := manager.recv(4096)).startswith(b"READY=1"):
        assert report == b"WATCHDOG=1"
    return report


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (2, 2), (2, 1)])
def test_restart_with_passed_sockets_refuses_nobody(
    tmp_path: Path, start_passed: Callable[..., subprocess.Popen[bytes]], workers: int, count: int
) -> None:
    """A client that comes while no gateway runs waits in the socket's queue, and the next gateway answers it."""
    first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    sockets = [first, *(socket.create_server(first.getsockname(), reuse_port=True) for _ in range(count - 1))]
    for place, sock in enumerate(sockets):  # away from 3 and 4, which PASS fills
        sockets[place] = socket.socket(fileno=fcntl.fcntl(sock.detach(), fcntl.F_DUPFD, 30))
    port = sockets[0].getsockname()[1]
    config, _ = write_config(tmp_path, server={"port": port, "workers": workers})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        old = start_passed(config, sockets)
        assert f"listening on http://127.0.0.1:{port} ".encode() in until_ready(manager)
        assert [get(port, "/health")[0] for _ in range(8)] == [200] * 8
        old.terminate()
        assert old.wait(60) == 0
        waiting = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(8)]
        for client in waiting:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        new = start_passed(config, sockets)
        until_ready(manager)
        for client in waiting:
            with client:
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        new.terminate()
        assert new.wait(60) == 0
    for sock in sockets:
        sock.close()
