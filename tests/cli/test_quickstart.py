"""`aiaas quickstart` as a process: the printed command works, and Ctrl-C stops all of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from aiaas.cli.foundvllm import FoundVllm
from aiaas.cli.main import run
from aiaas.plan.model import Plan
from tests.e2e.processes import MODEL, running_simulator
from tests.ports import free_port


class Quickstart:
    """A running quickstart. `said` is its stderr so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "aiaas", "quickstart", "--folder", str(folder), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = ""

    def until(self, words: str) -> None:
        """Read stderr until `words` stand in it, or it ends."""
        assert self.process.stderr is not None
        while words not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def curl(self) -> str:
        """The printed command, run as it stands in a shell."""
        self.until("Ctrl-C stops all")
        found = re.search(r"^  curl .*?'$(?<=\}')", self.said, re.MULTILINE | re.DOTALL)
        assert found is not None, self.said
        done = subprocess.run(["sh", "-c", found[0]], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def children(self) -> list[psutil.Process]:
        """All processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        stdout, rest = self.process.communicate(timeout=60)
        self.said += rest
        assert stdout == ""
        assert "Traceback" not in self.said
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Quickstart]]:
    """Start one in a folder of the test's own; whatever is left at the end is killed."""
    running: list[Quickstart] = []

    def begin(*arguments: str) -> Quickstart:
        running.append(Quickstart(tmp_path / "try", *arguments))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.communicate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_curl_line_works_and_ctrl_c_stops_everything(
    start: Callable[..., Quickstart], tmp_path: Path
) -> None:
    """Twice in the same folder; neither the simulator nor a port is left behind, and no key is in the log."""
    port = free_port(1, 2, 3)
    for round_, arguments in enumerate((("--port", str(port)), ())):
        quickstart = start(*arguments)
        answer = quickstart.curl()
        assert answer.startswith("data: ")
        key = tmp_path / "try" / "key.txt"
        assert key.read_text().strip() in quickstart.said
        assert key.stat().st_mode & 0o777 == 0o600
        assert f"aiaas chat -c {tmp_path}/try/aiaas.yaml --api-key-file {key}" in quickstart.said
        assert answer.endswith("data: [DONE]\n\n")
        children = quickstart.children()
        assert children
        assert quickstart.stop() == 0
        assert not psutil.wait_procs(children, timeout=30)[1]
        assert ("stays as it is" in quickstart.said) == (round_ == 1)
    log = (tmp_path / "try" / "log.jsonl").read_text()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events.count("inference_request") == 2
    assert "Hello!" not in log
    assert re.search(r"sk-[A-Za-z0-9]{20}", log) is None
    for offset in range(3):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port + offset))
            sock.listen()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_second_one_in_the_same_folder_leaves_the_first_alone(start: Callable[..., Quickstart]) -> None:
    """The second says that the port is taken, exits with 3, and the first one's key still works."""
    first = start("--port", str(port := free_port(1, 2, 3)))
    first.until("Ctrl-C stops all")
    second = start()
    _, said = second.process.communicate(timeout=60)
    assert second.process.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port} (server.port)" in said
    assert "Traceback" not in said
    time.sleep(0.7)  # longer than the key file's watch takes
    assert first.curl().endswith("data: [DONE]\n\n")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Exit code 3."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "aiaas", "quickstart", "--folder", str(tmp_path / "file" / "x")]
    command += ["--port", str(free_port(1, 2, 3))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("aiaas: cannot write ")


def test_port_option_wins_over_an_earlier_config(start: Callable[..., Quickstart], tmp_path: Path) -> None:
    """The next run in the same folder listens on the given port, with metrics and simulator behind it."""
    first = start("--port", str(free_port(1, 2, 3)))
    first.until("Ctrl-C stops all")
    assert first.stop() == 0
    second = start("--port", str(other := free_port(1, 2, 3)))
    second.until(f"listens on http://127.0.0.1:{other};")
    second.until(f"Metrics: http://127.0.0.1:{other + 1}/metrics")


def test_port_option_changes_nothing_else_in_an_edited_config(start: Callable[..., Quickstart], tmp_path: Path) -> None:
    """Only the port's digits; edits in the file stay."""
    config = tmp_path / "try" / "aiaas.yaml"
    config.parent.mkdir()
    before = "# mine\nserver: {port: 1, host: 127.0.0.1}  # here\nmonitoring: {prometheus: false}\nbackends:\n"
    before += "  v: {url: 'http://127.0.0.1:9', models: [m]}\n"
    config.write_text(before)
    running = start("--port", str(port := free_port(1, 2, 3)))
    running.until(f"listens on http://127.0.0.1:{port};")
    assert config.read_text() == before.replace("port: 1,", f"port: {port},")


def test_an_edited_config_without_a_port_says_where_to_write_it(tmp_path: Path) -> None:
    """Exit code 2: the option cannot win there."""
    (tmp_path / "aiaas.yaml").write_text("backends: {v: {url: 'http://127.0.0.1:9', models: [m]}}\n")
    command = [sys.executable, "-m", "aiaas", "quickstart", "--folder", str(tmp_path), "--port", "9000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "has no server.port; write it there" in done.stderr


@pytest.mark.parametrize("above", [pytest.param(0, id="gateway"), pytest.param(3, id="page")])
def test_a_taken_port_leaves_no_config_behind(tmp_path: Path, above: int) -> None:
    """Ports are tried before anything is written: the next run would use the taken port again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "aiaas", "quickstart", "--folder", str(tmp_path / "try")]
        command += ["--port", str(taken.getsockname()[1] - above)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "choose another port" in done.stderr
    assert not (tmp_path / "try").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_named_vllm_is_used_with_its_models(start: Callable[..., Quickstart], tmp_path: Path) -> None:
    """No simulator is started; each request is one line; the same again stays as it is, and another one is refused."""
    with running_simulator(tmp_path / "simulator.log") as url:
        first = start("--port", str(free_port(1, 2)), "--backend", url)
        assert first.curl().endswith("data: [DONE]\n\n")
        assert first.children() == []
        first.until(f"quickstart    {MODEL}")
        assert "200 " in first.said
        assert first.stop() == 0
        assert "Next, your own vLLM" not in first.said
        config = tmp_path / "try" / "aiaas.yaml"
        assert f'url: {url}\n    models: ["{MODEL}"]' in config.read_text()
        again = start("--backend", url)
        again.until("Ctrl-C stops all")
        assert again.stop() == 0
        config.write_text(config.read_text() + "# mine\n")
        refused = start("--backend", url)
        _, said = refused.process.communicate(timeout=60)
    assert refused.process.returncode == 2
    assert "was edited; write url and models there, or choose another --folder" in said


def test_a_backend_that_does_not_answer_leaves_nothing_behind(tmp_path: Path) -> None:
    """Exit code 3, and no folder."""
    command = [sys.executable, "-m", "aiaas", "quickstart", "--folder", str(tmp_path / "try")]
    command += ["--backend", f"http://127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "connection refused" in done.stderr
    assert not (tmp_path / "try").exists()


class Terminal:
    """Standard streams of a person who answers `word`."""

    def __init__(self, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self._word = word
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.confirm", self.confirm)

    def confirm(self, question: str, **_: object) -> bool:
        self.asked.append(question)
        return self._word == "y"


@pytest.mark.parametrize(("word", "used"), [("y", True), ("n", False)])
def test_a_vllm_on_its_usual_port_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, used: bool
) -> None:
    """The question names its models; the config follows the answer. An earlier config is not asked about."""
    found = FoundVllm("http://127.0.0.1:8000", ("base", "small"), '["base", "small"]')
    monkeypatch.setattr("aiaas.cli.foundvllm.look_for_vllm", lambda _url: found)
    plans: list[Plan] = []
    monkeypatch.setattr("aiaas.cli.gateway.run_gateway", lambda plan, *_, **__: plans.append(plan))
    monkeypatch.setattr("aiaas.cli.quickstart._show_requests", lambda *_: None)
    terminal = Terminal(word, monkeypatch)
    arguments = ["quickstart", "--folder", str(tmp_path / "try")]
    assert run([*arguments, "--port", str(free_port(1, 2))]) == 0
    (question,) = terminal.asked
    assert question.startswith("A server at http://127.0.0.1:8000 offers base, small. ")
    (backend,) = plans[0].backends
    assert (backend.engine is None) == used
    assert ([model.name for model in plans[0].models] == ["base", "small"]) == used
    assert run(arguments) == 0
    assert len(terminal.asked) == 1


def test_yes_uses_it_and_a_pipe_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal there is a simulator, unless --yes asks for more."""
    looked: list[str] = []

    def find(url: str) -> FoundVllm:
        looked.append(url)
        return FoundVllm(url, ("base",), '["base"]')

    monkeypatch.setattr("aiaas.cli.foundvllm.look_for_vllm", find)
    plans: list[Plan] = []
    monkeypatch.setattr("aiaas.cli.gateway.run_gateway", lambda plan, *_, **__: plans.append(plan))
    monkeypatch.setattr("aiaas.cli.quickstart._show_requests", lambda *_: None)
    assert run(["quickstart", "--folder", str(tmp_path / "a"), "--port", str(free_port(1, 2))]) == 0
    assert looked == []
    assert run(["quickstart", "--folder", str(tmp_path / "b"), "--port", str(free_port(1, 2)), "--yes"]) == 0
    assert looked == ["http://127.0.0.1:8000"]
    assert [plan.backends[0].engine is None for plan in plans] == [False, True]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_next_step_that_it_prints_works(start: Callable[..., Quickstart], tmp_path: Path) -> None:
    """`url:` instead of `engine:`, and the served name in `models:`."""
    first = start("--port", str(free_port(1, 2, 3)))
    first.until("Ctrl-C stops all")
    assert first.stop() == 0
    assert "write `url: http://localhost:8000` instead of `engine:`, and in `models:`" in first.said
    with running_simulator(tmp_path / "simulator.log") as url:
        config = tmp_path / "try" / "aiaas.yaml"
        config.write_text(
            re.sub(r"engine: \{.*\}", f"url: {url}", config.read_text()).replace("[simulator]", f"[{MODEL}]")
        )
        assert start().curl().endswith("data: [DONE]\n\n")
