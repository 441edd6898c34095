"""aiaas.cli.common: the files of the config, the same for every command that reads one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from aiaas.cli.common import config_paths
from aiaas.cli.main import COMMANDS, run
from tests.ports import free_port

BASE = "server: {host: 127.0.0.1}\nbackends:\n  v: {url: 'http://127.0.0.1:9', models: [m]}\n"
OPTIONS = ["-c", "base.yaml", "-c", "over.yaml"]


@pytest.fixture(autouse=True)
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A folder with a config and an overlay, which has another port, key file and usage file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    port = free_port()
    Path("base.yaml").write_text(BASE)
    Path("over.yaml").write_text(
        f"server: {{port: {port}}}\nauth: {{keys_file: team.yaml}}\nmonitoring: {{usage_file: usage.db}}\n"
    )
    return port


def test_config_is_the_option_the_variable_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order; several files are separated in the variable as in PATH."""
    assert config_paths(None) == config_paths([]) == (Path("aiaas.yaml"),)
    monkeypatch.setenv("AIAAS_CONFIG", os.pathsep.join(["base.yaml", "", "over/prod.yaml"]))
    assert config_paths(None) == (Path("base.yaml"), Path("over/prod.yaml"))
    assert config_paths([Path("mine.yaml")]) == (Path("mine.yaml"),)
    monkeypatch.setenv("AIAAS_CONFIG", "")
    assert config_paths(None) == (Path("aiaas.yaml"),)


def commands_with_a_config() -> Iterator[tuple[str, Any]]:
    """The `-c` of every command and subcommand that has one."""
    for name, (module, _) in COMMANDS.items():
        command: Any = get_command(importlib.import_module(module).app)
        for each in getattr(command, "commands", {"": command}).values():
            yield from ((f"{name} {each.name}", option) for option in each.params if "-c" in option.opts)


def test_every_command_takes_several_files() -> None:
    """None takes the last file alone, in silence."""
    found = dict(commands_with_a_config())
    assert len(found) > 15
    assert [name for name, option in found.items() if not getattr(option, "multiple", False)] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("keys create alice", "team.yaml"),
        ("usage", "no usage since"),
        ("connect openai-python", "http://127.0.0.1:{port}/v1"),
        ("chat", "127.0.0.1:{port}"),
        ("smoke", "127.0.0.1:{port}"),
        ("loadtest --requests 1", "127.0.0.1:{port}"),
        ("doctor", "base.yaml + over.yaml is valid"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True], ids=["options", "variable"])
def test_command_reads_the_overlay(
    line: str,
    words: str,
    by_variable: bool,
    port: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its port, key file and usage file are in what the command says."""
    monkeypatch.setenv("AIAAS_CONFIG", os.pathsep.join(OPTIONS[1::2]) if by_variable else "")
    run([*line.split(), *(() if by_variable else OPTIONS)])
    out, err = capsys.readouterr()
    assert words.format(port=port) in out + err


@pytest.mark.parametrize("line", ["usage", "keys list", "chat", "smoke", "loadtest", "doctor", "validate", "serve"])
def test_broken_overlay_is_never_ignored(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The line for the operator names both files, or the place in the one that is broken."""
    Path("over.yaml").write_text("server: {port: high}\n")
    assert run([*line.split(), *OPTIONS]) != 0
    out, err = capsys.readouterr()
    assert "base.yaml + over.yaml" in err or "over.yaml:1:" in out


@pytest.mark.parametrize(
    "line", ["usage", "keys list", "connect openai-python", "chat", "smoke", "loadtest", "doctor", "serve"]
)
def test_missing_overlay_is_an_environment_error(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names it."""
    Path("over.yaml").unlink()
    assert run([*line.split(), *OPTIONS]) == 3
    assert "over.yaml: " in capsys.readouterr().err


def test_init_writes_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Two are wrong usage, and neither is written."""
    assert run(["init", "-c", "one.yaml", "-c", "two.yaml"]) == 2
    assert "init writes one file" in capsys.readouterr().err
    assert not Path("one.yaml").exists()
    assert not Path("two.yaml").exists()
