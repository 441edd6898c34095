"""tests/bench/setup.py: one environment for every clone, built once, and again where a build was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import setup


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names that were built, in a cache of the test's own; building is creating the marker."""
    built: list[str] = []

    def build(name: str, folder: Path) -> None:
        built.append(name)
        folder.mkdir(exist_ok=True)
        (folder / "ready").touch()

    monkeypatch.setenv("AIAAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(setup, "_build", build)
    return built


def test_it_is_built_once_and_then_reused(builds: list[str]) -> None:
    """A second clone finds the first one's folder, and each name has its own."""
    assert setup.ensure("litellm") == setup.ensure("litellm") == setup.locate("litellm")
    assert setup.ensure("vllm-router") != setup.ensure("litellm")
    assert builds == ["litellm", "vllm-router"]


def test_an_interrupted_build_is_begun_again(builds: list[str]) -> None:
    """A folder without its marker is not taken for a whole one."""
    (setup.locate("litellm") / "bin").mkdir(parents=True)
    setup.ensure("litellm")
    assert builds == ["litellm"]


def test_folder_depends_on_the_pins_and_not_on_comments(
    builds: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An old clone keeps its own."""
    before, text = setup.locate("litellm"), (setup.LOCKS / "litellm.lock").read_text()
    monkeypatch.setattr(setup, "LOCKS", tmp_path)
    (tmp_path / "litellm.lock").write_text("# another word\n" + text)
    assert setup.locate("litellm") == before
    (tmp_path / "litellm.lock").write_text(text + "one-more==1\n")
    assert setup.locate("litellm") != before


def test_a_failing_step_is_told_with_its_last_line() -> None:
    """One line, as the table wants it."""
    with pytest.raises(setup.SetupError, match="litellm could not be installed; the last line was: no such thing"):
        setup._step("litellm", [sys.executable, "-c", "print('first', flush=True); exit('no such thing')"])


@pytest.mark.parametrize("name", setup.NAMES)
def test_the_lock_is_exact(name: str) -> None:
    """Installed with --no-deps, so every line pins one version, and nothing but versions stands in it."""
    assert [pin for pin in setup.pins(name) if len(pin.split("==")) != 2] == []
    assert f"{name}=={setup.version(name)}" in setup.pins(name)
