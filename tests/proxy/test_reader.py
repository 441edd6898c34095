"""aiaas.proxy.reader: what the reader's process does. As a process: tests/proxy/test_aside.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas import __version__
from aiaas.proxy.aside import PlanReading, ReadRequest
from aiaas.proxy.reader import reading_of

TEXT = "backends:\n  a: {url: 'http://a', models: [m]}\nserver: {port: %d}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config."""
    path = tmp_path / "aiaas.yaml"
    path.write_text(TEXT % 9999)
    return path


def test_other_version_is_refused(file: Path) -> None:
    """Its Plan may have other fields than this one's."""
    found = reading_of(ReadRequest((file,), {}, version="0.0.9"))
    assert isinstance(found, str)
    assert found.startswith(f"aiaas {__version__} has replaced the running 0.0.9: restart it")


def test_rules_of_a_cluster_are_not_reported_at_a_reload(file: Path) -> None:
    """A pod's config has a remnant of that section."""
    file.write_text(TEXT % 9999 + "kubernetes: {replicas: {max: 16}}\n")
    found = reading_of(ReadRequest((file,), {}))
    assert isinstance(found, PlanReading)
    assert (found.plan is not None, found.problems) == (True, ())


def test_text_to_compare_with_is_read_first(file: Path) -> None:
    """A worker that starts later runs with what the others have."""
    found = reading_of(ReadRequest((file,), {}, before=(TEXT % 8080,)))
    assert isinstance(found, PlanReading)
    assert found.plan is not None
    assert (found.plan.server.port, found.held) == (8080, ("server.port",))


def test_invalid_text_to_compare_with_gives_no_plan(file: Path) -> None:
    """It was valid in another process, with another environment."""
    assert reading_of(ReadRequest((file,), {}, before=("backends: {}",))) == PlanReading(None, ())


def test_overlays_are_read_and_compared_with(file: Path) -> None:
    """The texts of all files, those to read and those to compare with."""
    over = file.with_name("prod.yaml")
    over.write_text("request: {max_choices: 3}\n")
    found = reading_of(ReadRequest((file, over), {}))
    assert isinstance(found, PlanReading)
    assert found.plan is not None
    assert (found.plan.request.max_choices, found.plan.files) == (3, (file, over))
    texts = (TEXT % 9999, "request: {max_choices: 5}\nserver: {port: 7777}\n")
    found = reading_of(ReadRequest((file, over), {}, texts, before=(TEXT % 8080, "")))
    assert isinstance(found, PlanReading)
    assert found.plan is None  # an empty file is an error, in a config to compare with, too
    found = reading_of(ReadRequest((file, over), {}, texts, before=(TEXT % 8080, "version: 1\n")))
    assert isinstance(found, PlanReading)
    assert found.plan is not None
    assert (found.plan.request.max_choices, found.plan.server.port, found.held) == (5, 8080, ("server.port",))
