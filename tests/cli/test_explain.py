"""`aiaas explain`: codes and fields, as people write them."""

from __future__ import annotations

import pytest

from aiaas.cli.main import run
from aiaas.config.code_texts import CODES
from aiaas.config.describe import described_sections


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With its title, in capitals or not."""
    assert run(["explain", code.lower()]) == 0
    assert capsys.readouterr().out.startswith(f"{code}: {CODES[code][0]}\n\n  ")


def test_every_field_is_explained_by_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    """Each field's answer begins with its path, each section's lists its fields; no Markdown is left."""
    for section in described_sections():
        path = ".".join("anything" if part == "*" else str(part) for part in section.path)
        assert run(["explain", path]) == 0
        listed = capsys.readouterr().out
        for field in section.fields:
            assert f"\n  {field.name} " in listed
            assert run(["explain", f"{path}.{field.name}".lstrip(".")]) == 0
            said = capsys.readouterr().out
            assert said.startswith(f"{section.name}.{field.name}".lstrip(".")), said
            assert "`" not in said


@pytest.mark.parametrize(
    ("written", "begins"),
    [
        ("", "The config\n"),
        ("burst", "rate_limit.burst: whole number, at least 1 or null; default null\n"),
        ("backends.vllm.urls", "backends.NAME.urls: list of text or section or null; default null\n"),
        ("backends.vllm.models[0].name", "backends.NAME.models[].name: text; required\n"),
        ("kubernetes.ingress", "kubernetes.ingress\n"),
    ],
    ids=["nothing", "a name alone", "a name of the operator", "an index", "a section"],
)
def test_a_place_is_found(written: str, begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its path in the file, or by its last name where that is enough."""
    assert run(["explain", written]) == 0
    assert capsys.readouterr().out.startswith(begins)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("AIA999", "aiaas: there is no problem AIA999; docs/problems.md lists all, from AIA001 to AIA"),
        ("rate_limit.brst", "aiaas: the config has no field rate_limit.brst; did you mean rate_limit.burst?\n"),
        ("brst", "aiaas: the config has no field brst; did you mean rate_limit.burst?\n"),
        ("nonsense", "aiaas: the config has no field nonsense; aiaas explain lists its sections\n"),
        (".", "The config\n"),
    ],
    ids=["no such code", "a misspelt path", "a misspelt name", "nothing like it", "a dot"],
)
def test_the_unknown_names_the_nearest(written: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and one line."""
    code = run(["explain", written])
    out, err = capsys.readouterr()
    assert (err or out).startswith(hint)
    assert code == (0 if written == "." else 1)
