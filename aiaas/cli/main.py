"""The entry point of `aiaas`: its commands and their exit codes.

Start-up time decides the design. `aiaas --help` and shell completion happen often and must feel instant (under 300 ms),
while a command may need aiohttp, pydantic or a hash library. So the table below holds every command's name and one line
of help, and a command's module is imported when that command runs, not before.

`run` turns every outcome into an exit code: wrong usage 2, all others in `outcome.py`.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, NoReturn, TextIO

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from aiaas import __version__
from aiaas.cli.common import COMPLETE_VARIABLE, CREDENTIALS_VARIABLE, new_app
from aiaas.cli.outcome import EXIT_INTERRUPTED, guarded, let_go_of, note
from aiaas.errors import CommandError

# name -> (module, one line of help), in the order in which `aiaas --help` lists them.
COMMANDS: Final = MappingProxyType(
    {
        "quickstart": ("aiaas.cli.quickstart", "Start a gateway with a simulated model on this machine."),
        "init": ("aiaas.cli.init", "Write a commented starter aiaas.yaml."),
        "validate": ("aiaas.cli.validate", "Check a config and show all its problems at once."),
        "doctor": ("aiaas.cli.doctor", "Look for what is wrong with a gateway, and say what to do."),
        "explain": ("aiaas.cli.explain", "Explain a problem, a config field, or a request."),
        "status": ("aiaas.cli.status", "Show the state of a running gateway, and what to do."),
        "schema": ("aiaas.cli.schema", "Print the JSON Schema of the config, for editors."),
        "keys": ("aiaas.cli.keys", "Create, list, revoke and check API keys."),
        "usage": ("aiaas.cli.usage", "Show requests and tokens by key, model and day."),
        "render": ("aiaas.cli.render", "Print Kubernetes manifests or a compose file."),
        "serve": ("aiaas.cli.serve", "Run the gateway."),
        "top": ("aiaas.cli.top", "Show live what running gateways do."),
        "logs": ("aiaas.cli.logs", "Show the gateway's log in readable lines."),
        "simulate": ("aiaas.cli.simulate", "Run only the embedded vLLM simulator."),
        "chat": ("aiaas.cli.chat", "Talk to a model through the gateway."),
        "connect": ("aiaas.cli.connect", "Print what to paste into Claude Code, Codex, an SDK, ..."),
        "smoke": ("aiaas.cli.smoke", "Run a series of checks against a running gateway."),
        "loadtest": ("aiaas.cli.loadtest", "Run a load test against a gateway and report the results."),
        "report": ("aiaas.cli.report", "Show load-test results, one run or several side by side."),
        "completion": ("aiaas.cli.completion", "Print a script for bash, zsh or fish that completes all this."),
    }
)

EPILOG = """Examples:

\b
  aiaas quickstart                        try it: config, key, simulator and gateway
  aiaas init && aiaas validate            start a config of your own and check it
  KEY=$(aiaas keys create alice)          make a key
  aiaas serve -c aiaas.yaml               run the gateway

Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 environment error (port taken, file missing, server unreachable).
"""


def main() -> NoReturn:
    """The `aiaas` program, after `aiaas.cli.entry` has set up SIGINT and the standard streams."""
    sys.stdout = _named(sys.stdout)
    if COMPLETE_VARIABLE in os.environ:  # the shell shows errors in the middle of the line that is being typed
        let_go_of(sys.stderr)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # already reported; the interpreter would flush again at exit and make the exit code 120
            let_go_of(stream)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every error is one line on stderr."""
    arguments, debug = _take_debug(arguments)
    return guarded(lambda: _run_command(arguments), debug)


class _Stdout(io.TextIOWrapper):
    """Names stdout in its errors; the system's "No space left on device" does not.

    It wraps the text layer: in the raw layer a Ctrl-C between the write and its return would write the text twice.
    """

    def write(self, text: str) -> int:
        with _blaming_stdout():
            return super().write(text)

    def flush(self) -> None:
        with _blaming_stdout():
            super().flush()


@contextmanager
def _blaming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = "cannot write to stdout"
        raise


def _named(stdout: TextIO) -> TextIO:
    """Wrap stdout in a _Stdout. An unbuffered stdout (`python -u`) still writes each line at once."""
    at_once = bool(stdout.line_buffering or getattr(stdout, "write_through", False))
    buffer = open(stdout.fileno(), "wb", closefd=False)  # noqa: SIM115  stays open as long as the process
    return _Stdout(buffer, stdout.encoding, stdout.errors, line_buffering=at_once)


class LazyGroup(TyperGroup):
    """Lists the commands of COMMANDS by their one line of help, and imports a command's module when it is resolved."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command behind a name; called to run it and to complete its arguments, not to list it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest


app = new_app(
    cls=LazyGroup,
    name="aiaas",
    help="The gateway that a platform team puts in front of its own vLLM.",
    epilog=EPILOG,
    add_completion=True,
    invoke_without_command=True,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"aiaas {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", "-V", callback=_show_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks. Works anywhere on the line."),
) -> None:
    del version, debug  # the first acts through its callback, the second was taken by `run`
    if os.environ.get(CREDENTIALS_VARIABLE):
        from aiaas.cli.credentials import add_credentials

        add_credentials(os.environ)
    if ctx.invoked_subcommand is None:
        note(ctx.get_help())
        raise typer.Exit(2)


class _Ended(CommandError):
    """typer ended the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _run_command(arguments: Sequence[str]) -> int:
    try:
        code = get_command(app).main(list(arguments), prog_name="aiaas", standalone_mode=False)
    except typer.Abort as error:  # Ctrl-C or end of input at a prompt
        raise _Ended("aborted", EXIT_INTERRUPTED) from error
    except typer.TyperException as error:
        raise _Ended(_usage_message(error), error.exit_code) from error
    return code if isinstance(code, int) else 0


def _load(name: str) -> Any:
    """The command `name` from its module.

    Raises CommandError if this installation lacks the module.
    """
    module_name, line = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:  # one of the command's own imports is missing: an error, not an absent command
            raise
        raise CommandError(f"this installation has no `aiaas {name}`") from error
    command: Any = get_command(module.app)
    command.name = name
    command.help = command.help or line
    return command


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the line, wherever it stands before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def _usage_message(error: typer.TyperException) -> str:
    """The error and the command that shows help, in one line; click's own rendering takes four lines."""
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    return message if context is None else f"{message}; see `{context.command_path} --help`"
