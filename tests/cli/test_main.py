"""The frame of the command line: instant help, and one line and the right exit code for every end."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

from aiaas.cli import main as main_module
from aiaas.cli.common import new_app
from aiaas.cli.main import COMMANDS, run
from aiaas.errors import AiaasError, CheckFailed, EnvironmentFault, UsageError

HEAVY = ("aiohttp", "pydantic", "passlib", "rich", "yaml", "uvloop", "httptools", "prometheus_client", "asyncio")


def aiaas(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [sys.executable, "-m", "aiaas", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)  # type: ignore[call-overload,no-any-return]


def test_help_imports_nothing_heavy() -> None:
    """`aiaas --help` loads neither a server nor a model nor a hash library nor a command's module."""
    code = (
        "import sys\nfrom aiaas.cli.main import run\ncode = run(['--help'])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "heavy += [name for name in sys.modules if name.startswith('aiaas.') and name not in "
        "('aiaas.cli', 'aiaas.cli.main', 'aiaas.cli.common', 'aiaas.cli.outcome', 'aiaas.errors')]\n"
        "print(code, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == "0 []"


def test_help_lists_every_command_with_its_line() -> None:
    """Also commands whose module is not installed."""
    shown = aiaas("--help").stdout
    for name, (_, line) in COMMANDS.items():
        assert any(name in row.split() and line in row for row in shown.splitlines())
    assert "Examples:" in shown


def test_the_version_goes_to_stdout() -> None:
    """A script can read it."""
    done = aiaas("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "aiaas 0.1.0\n", "")


def test_no_command_is_wrong_usage() -> None:
    """The help goes to stderr then, so that a script's empty variable is an error."""
    done = aiaas()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kesy"], "aiaas: No such command 'kesy'. Did you mean 'keys'?; see `aiaas --help`\n"),
        (["--nope"], "aiaas: No such option: --nope; see `aiaas --help`\n"),
        (["keys", "show"], "aiaas: Missing argument 'NAME|ID'; see `aiaas keys show --help`\n"),
        (["keys"], "aiaas: Missing command; see `aiaas keys --help`\n"),
    ],
    ids=["unknown command", "unknown option", "missing argument", "missing subcommand"],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The fault and where the help is, exit code 2."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", message)


def command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    app = new_app()

    @app.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(main_module, "_load", lambda name: typer.main.get_command(app))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckFailed("no such key"), 1, "aiaas: no such key\n"),
        (UsageError("give one key"), 2, "aiaas: give one key\n"),
        (EnvironmentFault("cannot bind"), 3, "aiaas: cannot bind\n"),
        (AiaasError("broken"), 1, "aiaas: broken\n"),
        (typer.BadParameter("no port"), 2, "aiaas: Invalid value: no port; see `aiaas serve --help`\n"),
        (FileNotFoundError(2, "No such file or directory", "x.pem"), 3, "aiaas: x.pem: No such file or directory\n"),
        (OSError("odd"), 3, "aiaas: odd\n"),
        (
            ValueError("two\nlines"),
            70,
            "aiaas: internal error: ValueError: two lines; run again with --debug for details\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(5), 5, ""),
    ],
    ids=["not held", "usage", "world", "any of ours", "bad parameter", "file", "os", "internal", "ctrl-c", "exit"],
)
def test_every_end_has_its_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    """No traceback reaches a user, whatever a command raises."""
    command_that_raises(monkeypatch, error)
    assert run(["serve"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("arguments", [["--debug", "serve"], ["serve", "--debug"]], ids=["before", "after"])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Wherever --debug stands on the line; the exit code stays."""
    command_that_raises(monkeypatch, ValueError("odd"))
    assert run(arguments) == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_absent_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing module is a sentence; one that fails to import is a fault."""
    monkeypatch.setattr(main_module, "COMMANDS", {"serve": ("aiaas.cli.nowhere", "Run.")})
    assert run(["serve"]) == 1
    assert capsys.readouterr().err == "aiaas: this installation has no `aiaas serve`\n"


def test_reader_that_leaves_causes_no_error(tmp_path: Path) -> None:
    """`aiaas ... | head -1` prints no complaint."""
    script = f"set -o pipefail; {sys.executable} -m aiaas --help | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("Usage: aiaas")
    assert done.stderr == ""


def test_output_to_a_closed_pipe_is_quiet() -> None:
    """Nobody reads the last flush of stdout: exit 141, as a shell reports it, and no message."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from aiaas.cli import main as m\nm._run_command = lambda arguments: print('x') or 0\nm.main()"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_stdout_is_named() -> None:
    """A bare "No space left on device" does not say which device; exit 3."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "aiaas", "schema"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=buffered, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, b"aiaas: cannot write to stdout: No space left on device\n")


def test_completion_names_the_commands() -> None:
    """Pressing TAB after `aiaas ke` offers keys, and imports nothing for it."""
    environment = os.environ | {"_AIAAS_COMPLETE": "complete_bash", "COMP_WORDS": "aiaas ke", "COMP_CWORD": "1"}
    assert "keys" in aiaas(env=environment).stdout.split()
    environment |= {"COMP_WORDS": "aiaas keys ro", "COMP_CWORD": "2"}
    assert "rotate" in aiaas(env=environment).stdout.split()
