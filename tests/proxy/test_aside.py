"""aiaas.proxy.aside: a config that another process reads."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from aiaas.errors import EnvironmentFault
from aiaas.plan.read import read
from aiaas.proxy.aside import ReadRequest, packed, read_aside

TEXT = "backends:\n  a: {url: 'http://a', api_key_env: KEY, models: [{name: m, aliases: [n]}]}\nserver: {port: %d}\n"
ENV = {"KEY": "secret"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config with a key and an alias."""
    path = tmp_path / "aiaas.yaml"
    path.write_text(TEXT % 8080)
    return path


def test_plan_is_the_one_that_this_process_would_make(file: Path) -> None:
    """With its mappings still read-only."""
    reading = read_aside(ReadRequest((file,), ENV))
    assert reading.plan is not None
    assert (reading.plan, reading.problems) == (read(file, ENV).plan, ())
    assert isinstance(reading.plan.routes, MappingProxyType)


def test_changed_field_waits_as_in_this_process(file: Path) -> None:
    """The config in force goes along, and comes back with the next Plan."""
    begun = read_aside(ReadRequest((file,), ENV)).plan
    assert begun is not None
    file.write_text(TEXT % 9999)
    reading = read_aside(ReadRequest((file,), ENV, before=begun.config))
    assert reading.plan is not None
    assert (reading.held, reading.plan.server.port) == (("server.port",), 8080)
    again = read_aside(ReadRequest((file,), ENV, before=reading.plan.config))
    assert again.held == reading.held


def test_problems_are_lines_of_text(file: Path) -> None:
    """As `aiaas validate` prints them; and no Plan."""
    file.write_text("backends: {}\nnonsense: 1\n")
    reading = read_aside(ReadRequest((file,), ENV))
    assert reading.plan is None
    assert reading.problems == tuple(map(str, read(file, ENV).problems))


def test_missing_file_is_an_environment_fault(tmp_path: Path) -> None:
    """With the reader's message."""
    with pytest.raises(EnvironmentFault, match=r"none\.yaml"):
        read_aside(ReadRequest((tmp_path / "none.yaml",), {}))


class _Poison:
    """The reader cannot make it from its pickled form."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("poison",)


def test_reader_that_ends_early_is_an_environment_fault(file: Path) -> None:
    """With its last line: the gateway keeps its Plan, and the log says why."""
    env: Any = {"KEY": _Poison()}
    with pytest.raises(EnvironmentFault, match=r"its reader ended early .*invalid literal"):
        read_aside(ReadRequest((file,), env))


def test_secrets_stay_out_of_the_repr() -> None:
    """The environment has them."""
    assert "secret" not in repr(ReadRequest((Path("x"),), ENV, before=b"secret", texts=("secret",)))


def test_read_only_mappings_are_pickled_too() -> None:
    """At any depth."""
    value = {"a": MappingProxyType({"b": (1, MappingProxyType({}))})}
    assert pickle.loads(packed(value)) == value
