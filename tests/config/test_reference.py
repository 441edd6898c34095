"""The manual pages that are made from the code."""

from __future__ import annotations

from pathlib import Path

from aiaas.config.code_texts import CODES
from aiaas.config.fields import all_fields
from aiaas.config.reference import config_reference, main, problems_reference

DOCS = Path(__file__).parents[2] / "docs"


def test_the_config_page_is_up_to_date() -> None:
    """docs/config.md matches the model; `python -m aiaas.config.reference docs` writes it."""
    assert (DOCS / "config.md").read_text(encoding="utf-8") == config_reference()


def test_the_problems_page_is_up_to_date() -> None:
    """docs/problems.md matches the codes, and each code has its heading."""
    page = (DOCS / "problems.md").read_text(encoding="utf-8")
    assert page == problems_reference()
    assert [line[3:9] for line in page.splitlines() if line.startswith("## ")] == list(CODES)


def test_every_field_is_described() -> None:
    """Each field has a sentence, and stands in the page."""
    page = config_reference()
    for path, info in all_fields():
        assert info.description, path
        assert f"- **`{path[-1]}`**" in page, path


def test_both_pages_are_written(tmp_path: Path) -> None:
    """The module's own command writes the two files."""
    main(tmp_path)
    assert (tmp_path / "config.md").read_text(encoding="utf-8") == config_reference()
    assert (tmp_path / "problems.md").read_text(encoding="utf-8") == problems_reference()
