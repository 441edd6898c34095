"""`aiaas completion SHELL`: the script that makes a shell complete `aiaas`, as kubectl and gh print theirs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from aiaas.cli.common import COMPLETE_VARIABLE, new_app

app = new_app()


class ShellName(StrEnum):
    """A shell."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@app.command(
    "completion",
    epilog="""Examples:

\b
  aiaas completion bash > ~/.local/share/bash-completion/completions/aiaas
  source <(aiaas completion zsh)          in ~/.zshrc, after compinit
  aiaas completion fish > ~/.config/fish/completions/aiaas.fish

It completes commands and options, and keys, models, checks, faults, kinds, presets, clients and codes.
""",
)
def print_script(shell: Annotated[ShellName, typer.Argument(metavar="bash|zsh|fish", help="The shell.")]) -> None:
    """Print the script that makes a shell complete `aiaas`."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # typer has no other name for it

    print(get_completion_script(prog_name="aiaas", complete_var=COMPLETE_VARIABLE, shell=shell.value))
