"""The first lines of the program: closed standard streams, and Ctrl-C before there is anybody to catch it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aiaas.cli.main import run
from aiaas.keys.file import read_key_file
from tests.ports import free_port

CONFIG = "backends: {vllm: {url: 'http://127.0.0.1:9', models: [m]}}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.chdir(tmp_path)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run one line of bash in which `aiaas` is this checkout's."""
    script = f'aiaas() {{ "{sys.executable}" -m aiaas "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["--help", "--version", "schema", "keys list"])
def test_a_closed_stdout_is_one_line_and_exit_3(command: str) -> None:
    """A result that nobody gets is a failure, without a traceback."""
    Path("keys.yaml").write_text("version: 1\nkeys: []\n...\n")
    shell("aiaas keys create alice >/dev/null")
    done = shell(f"aiaas {command} >&-")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "aiaas: cannot write to stdout: Bad file descriptor\n"


def test_a_key_for_a_closed_stdout_is_said_to_be_lost() -> None:
    """Its record is stored already, so the message names the way out."""
    done = shell("aiaas keys create yod >&-")
    assert done.returncode == 3
    assert "`aiaas keys rotate yod` makes another" in done.stderr
    assert [record.name for record in read_key_file(Path("keys.yaml")).records] == ["yod"]


def test_a_closed_stdin_reads_as_empty() -> None:
    """A closed stdin is reported like an empty one."""
    shell("aiaas keys create alice >/dev/null")
    done = shell("aiaas keys verify <&-")
    assert done.returncode == 2
    assert "stdin is empty" in done.stderr


@pytest.mark.parametrize("command", ["validate -c", "serve -c", "keys list -c", "keys list --keys-file"])
def test_a_file_that_may_not_be_read_is_exit_3(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither wrong usage nor a fault in the config: an environment error."""
    assert run(["validate", "-c", "none.yaml"]) == 3  # imports what it needs while everything may be read
    assert run(["keys", "list", "--keys-file", "none.yaml"]) == 3
    capsys.readouterr()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "secret.yaml"
        file.write_text(CONFIG)
        file.chmod(0)
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0  # who may read everything
        if root:
            os.seteuid(65534)
        try:
            code = run([*command.split(), str(file)])
        finally:
            if root:
                os.seteuid(0)
    assert code == 3
    message = capsys.readouterr().err
    assert message.startswith(f"aiaas: {file}: ")
    assert "Permission denied" in message


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_a_stderr_that_takes_nothing_changes_no_result(closed: str) -> None:
    """Neither the exit code nor stdout, whether it is closed or full."""
    Path("aiaas.yaml").write_text(CONFIG)
    done = shell(f"aiaas validate -o json {closed}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["valid"]
    assert shell(f"aiaas validate -c none.yaml {closed}").returncode == 3
    assert shell(f"aiaas --nope {closed}").returncode == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_the_gateway_runs_with_closed_streams(closed: str) -> None:
    """No socket of the event loop gets the number of a standard stream: it starts, stops when asked, and exits 0."""
    server = f"server: {{host: 127.0.0.1, port: {free_port()}}}\n"
    Path("aiaas.yaml").write_text(CONFIG + server + "monitoring: {prometheus: false, admin_port: 0}\n")
    process = subprocess.Popen(
        ["bash", "-c", f'exec "{sys.executable}" -m aiaas serve {closed}'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("listening on"):
                process.terminate()
        assert process.wait(timeout=60) == 0, said
        assert said[-1].startswith("listening on")
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_during_the_imports_is_silent() -> None:
    """The process ends by the signal; a typer that never finishes its import plays a slow disk."""
    slow = Path("slow")
    slow.mkdir()
    (slow / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "aiaas", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{slow.absolute()}{os.pathsep}{os.environ['PYTHONPATH']}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever the test runner's parent ignores
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_in_a_command_is_exit_130() -> None:
    """Once a command runs, it is an exception again, which lets it tidy up."""
    code = (
        "import sys, time\nfrom aiaas.cli import entry, main\n"
        "def wait(arguments):\n    print('waiting', flush=True)\n    time.sleep(30)\n"
        "main._run_command = wait\nentry.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 130
    finally:
        process.kill()
        process.communicate()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """A parent such as nohup or a shell's background job relies on that."""
    code = (
        "import os, signal\nfrom aiaas.cli import entry, main\n"
        "def interrupt(arguments):\n    os.kill(os.getpid(), signal.SIGINT)\n    return 0\n"
        "main._run_command = interrupt\nentry.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
