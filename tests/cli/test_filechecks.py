"""The files beside a config. The messages of most are tested through `aiaas validate` (test_validate.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.filechecks import key_file_problems
from aiaas.plan.read import read

TEXT = "backends: {v: {url: 'http://v:8000', models: [m]}}\nkubernetes: {host: a.example.com}\n"


@pytest.mark.parametrize(
    ("section", "deployed", "keys", "found"),
    [
        pytest.param("", False, None, ["does not exist, so every request is refused"], id="missing here"),
        pytest.param("", True, None, ["does not exist, so its Secret is not rendered"], id="missing for a Secret"),
        pytest.param(
            "  keys_secret: {create: false}\n",
            True,
            None,
            ["does not exist, so every request is refused"],
            id="missing, and no Secret of ours",
        ),
        pytest.param("", False, "keys: []", [], id="empty here"),
        pytest.param("", True, "keys: []", ["has no keys; applying the Secret replaces"], id="empty for a Secret"),
        pytest.param("  keys_secret: {create: false}\n", True, "keys: []", [], id="empty, and no Secret of ours"),
        pytest.param("auth: {enabled: false}\n", True, None, [], id="no authentication"),
    ],
)
def test_a_key_file_without_keys_is_a_warning(
    section: str, deployed: bool, keys: str | None, found: list[str], tmp_path: Path
) -> None:
    """The loss differs with the Secret that is made of it."""
    text = TEXT.replace("{host: a.example.com}\n", "\n  host: a.example.com\n") + section
    (tmp_path / "aiaas.yaml").write_text(text)
    if keys is not None:
        (tmp_path / "keys.yaml").write_text(f"version: 1\n{keys}\n")
    problems = key_file_problems(read(tmp_path / "aiaas.yaml", {}), deployed=deployed)
    assert [problem.severity for problem in problems] == ["warning"] * len(found)
    assert all(words in problem.message for words, problem in zip(found, problems, strict=True))
