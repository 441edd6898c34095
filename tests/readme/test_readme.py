"""Every command of the README, as printed and in order, in a copy of the checkout and an empty virtual environment.

One shell runs them all, as a reader's terminal would, so that variables live on. A block marked "in another terminal"
goes on beside it. Two things are not as at a reader's: `kubectl` is a stand-in that takes what it is given (there is no
cluster), and the test command is left to the suite that runs anyway. Ports 8000, 8080 to 8082, 9090 and 9091 must be
free.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository_rules import ROOT

pytestmark = [pytest.mark.readme, pytest.mark.timeout(400)]

PORTS = (8000, 8080, 8081, 8082, 9090, 9091)
BLOCK = re.compile(r"(?:<!-- (?P<mark>[a-z ]+) -->\n *)?```bash\n(?P<text>.*?)\n *```", re.DOTALL)
KUBECTL = """#!/bin/sh
# Takes manifests; as of a cluster that has none of them, `diff` finds a difference.
found=$(grep -c '^kind: ') || exit 9
echo "$1 $found" >>"$KUBECTL_CALLS"
[ "$1" != diff ]
"""


def blocks() -> list[tuple[str, str]]:
    """The marks (empty where there is none) and the commands of the README's bash blocks, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        (found["mark"] or "", re.sub(r"^ +(?=\S)", "", found["text"], flags=re.M)) for found in BLOCK.finditer(text)
    ]


class Terminal:
    """The reader's shell in the folder of the copy. `run` takes commands; `beside` starts one in another terminal."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.others: list[subprocess.Popen[bytes]] = []
        self.log = (folder / "terminal.log").open("wb")
        self.shell = self.start("bash", stdin=subprocess.PIPE)
        self.count = 0

    def start(self, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=stdin, stdout=self.log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def said(self) -> str:
        return (self.folder / "terminal.log").read_text(encoding="utf-8", errors="replace")

    def run(self, commands: str, *, within: float) -> list[str]:
        """Run them; return the words of each that failed."""
        self.count += 1
        failed, done = (self.folder / f"{self.count}.{name}" for name in ("failed", "done"))
        failed.touch()
        assert self.shell.stdin is not None
        trap = f"""trap 'printf "%s: %s\\n" "$?" "$BASH_COMMAND" >>{failed}' ERR\nset -o pipefail\n"""
        self.shell.stdin.write(f"{trap}{commands}\ntouch {done}\n".encode())
        self.shell.stdin.flush()
        self.until(done.exists, within)
        return failed.read_text().splitlines()

    def beside(self, command: str) -> None:
        self.others.append(self.start("bash", "-c", f"exec {command}" if "&&" not in command else command))

    def until(self, holds: object, within: float) -> None:
        assert callable(holds)
        deadline = time.monotonic() + within
        while not holds():
            assert time.monotonic() < deadline, self.said()[-4000:]
            time.sleep(0.1)

    def end(self) -> None:
        for process in (*self.others, self.shell):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        for process in (*self.others, self.shell):
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """In a copy of what git tracks, with an empty virtual environment and the stand-in for kubectl."""
    for port in PORTS:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
    folder = tmp_path_factory.mktemp("reader") / "aiaas"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    venv.create(folder / ".venv", with_pip=True)
    stand_ins = folder / ".venv" / "stand-ins"
    stand_ins.mkdir()
    (stand_ins / "kubectl").write_text(KUBECTL)
    (stand_ins / "kubectl").chmod(0o755)
    path = f"{stand_ins}:{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    dropped = ("AIAAS_API_KEY", "AIAAS_CONFIG", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    calls = str(folder / "kubectl.calls")
    terminal = Terminal(folder, environment | {"PATH": path, "KUBECTL_CALLS": calls, "PYTHONUNBUFFERED": "1"})
    try:
        yield terminal
    finally:
        terminal.end()
        shutil.rmtree(folder)  # what a reader sees holds a key, and conftest.py looks for keys in all that is left


def test_the_quickstart_command_prints_a_curl_line_that_works(terminal: Terminal) -> None:
    """The first command of the README, from nothing; Ctrl-C stops all of it."""
    [(_, command)] = [block for block in blocks() if block[0] == "quickstart command"]
    terminal.beside(command)
    terminal.until(lambda: "Ctrl-C stops all of it" in terminal.said(), 300)
    printed = re.search(r"^  curl .*?^    -d '.*?'$", terminal.said(), re.DOTALL | re.MULTILINE)
    assert printed is not None
    assert terminal.run(printed[0], within=60) == []
    assert "data: [DONE]" in terminal.said()
    quickstart = terminal.others.pop()
    os.killpg(quickstart.pid, signal.SIGINT)
    assert quickstart.wait(20) == 0


def test_every_other_command_works_as_printed(terminal: Terminal) -> None:
    """In order, each with exit code 0, but for `--diff`, which is 1 where an apply would change something."""
    failed = []
    for mark, commands in blocks():
        if mark in ("quickstart command", "test command"):
            continue
        if mark == "in another terminal":
            before = len(terminal.said())
            terminal.beside(commands)
            words = "listening on" if commands.startswith("aiaas serve") else "aiaas simulator, not a model: "
            terminal.until(lambda words=words, before=before: words in terminal.said()[before:], 60)
            continue
        failed += terminal.run(commands, within=300)
    assert failed == ["1: aiaas render -c cluster.yaml --diff"], terminal.said()[-6000:]
    assert "Hello" not in (terminal.folder / "keys.yaml").read_text()
    assert (terminal.folder / "run.html").read_text().startswith("<!DOCTYPE html>")
    (diff, made), (apply, applied) = (
        line.split() for line in (terminal.folder / "kubectl.calls").read_text().splitlines()
    )
    assert (diff, apply) == ("diff", "apply")
    assert int(made) == int(applied) > 8


def test_the_readme_has_the_commands_that_this_runs() -> None:
    """A block that the pattern does not see would not be run."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(blocks()) == text.count("```bash") == 11
    assert sys.version_info >= (3, 11)
