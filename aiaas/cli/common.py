"""Shared by all commands: common options, and output on stdout and stderr.

Rules:
  1. Only results that a program may read go to stdout. Notes, progress and warnings go to stderr.
  2. The config is `--config FILE`, else `$AIAAS_CONFIG`, else `./aiaas.yaml`. Several files are one config, each laid
     over those before it, for every command that reads a config (`ConfigOption`, `config_paths`).
  3. A command that fails raises a `CommandError` (one line, an exit code); only `aiaas.cli.main` prints it.
  4. No colour when piped or with `NO_COLOR`.

How to write a command: a module `aiaas/cli/<name>.py` with `app = new_app()` and functions under `@app.command()`. A
module with one command is that command, one with several is a group. Its line in `aiaas --help` stands in
`aiaas.cli.main.COMMANDS`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from aiaas.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_CONFIG = Path("aiaas.yaml")
CONFIG_VARIABLE = "AIAAS_CONFIG"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # set by systemd, in a unit with LoadCredential=
COMPLETE_VARIABLE = "_AIAAS_COMPLETE"  # set by a shell that wants words; typer makes the name


class Output(StrEnum):
    """How a result is printed. A `str` as well, so that it compares with the plain word."""

    text = "text"
    json = "json"


ConfigOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        readable=False,  # an unreadable file is not wrong usage: config_paths reports it
        help=f"The config; otherwise ${CONFIG_VARIABLE}, otherwise ./{DEFAULT_CONFIG}. Repeat it for overlays: each "
        "file is laid over those before it.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", metavar="text|json", help="How to print the result."),
]
# Of the commands that are a client of the gateway.
KeyFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A file that holds the key. [default: $AIAAS_API_KEY]")
]
CaOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Certificates to trust instead (PEM).")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Continue if the certificate does not verify.")]


def new_app(**settings: Any) -> typer.Typer:
    """A typer app in the house style: plain help text, `-h`, no pretty tracebacks. `settings` go to `typer.Typer`."""
    defaults: dict[str, Any] = {
        "add_completion": False,
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
    }
    return typer.Typer(**(defaults | settings))


def config_paths(option: Sequence[Path] | None) -> tuple[Path, ...]:
    """The files of the config to use: the option's, else those of $AIAAS_CONFIG, else ./aiaas.yaml. None need exist.

    Raises EnvironmentFault if a file exists and cannot be read.
    """
    paths = tuple(option or named_paths() or (DEFAULT_CONFIG,))
    for path in paths:
        _check_readable(path)
    return paths


def named_paths() -> tuple[Path, ...]:
    """The files of $AIAAS_CONFIG, separated as in $PATH."""
    return tuple(Path(name) for name in os.environ.get(CONFIG_VARIABLE, "").split(os.pathsep) if name)


def _check_readable(path: Path) -> None:
    try:
        path.stat()
        allowed = os.access(path, os.R_OK, effective_ids=True)
    except PermissionError:  # a folder on the way to it
        allowed = False
    except (OSError, ValueError):  # missing, or not a path: the caller that opens it reports that
        allowed = True
    if not allowed:
        raise EnvironmentFault(f"{path}: cannot be read: Permission denied")


def print_json(value: object) -> None:
    """Print a result for a machine: indented JSON and a newline on stdout. `value` is made of JSON's own types."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in aligned columns on stdout."""
    for line in aligned([headers, *rows]):
        print(line)


def aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows as lines in aligned columns, without frames, so that `awk` and eyes both read them."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def console(*, stderr: bool = False) -> Console:
    """A rich console for tables and progress. It drops colour and motion itself when piped or with NO_COLOR."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def wants_colours(stream: TextIO | None = None) -> bool:
    """Whether `stream` (stdout by default) is a terminal whose user wants colours (https://no-color.org)."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def read_duration(option: str, text: str) -> float:
    """Seconds. Raises UsageError naming the option."""
    from aiaas.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}") from error
