"""aiaas.openai.engine_fields: the table, and its page."""

from __future__ import annotations

from collections import Counter

from aiaas.openai.engine_fields import ENGINE_FIELDS, GUARDED, on_path
from aiaas.openai.paths import GENERATE
from tests.openai.engine_fields_page import PAGE, page


def test_docs_engine_fields_page_is_the_table() -> None:
    """`python -m tests.openai.engine_fields_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_each_field_has_one_rule_on_a_path() -> None:
    """Otherwise the last row would win."""
    counts = Counter((field.name, path) for field in ENGINE_FIELDS for path in field.paths)
    assert [place for place, count in counts.items() if count > 1] == []
    assert all(len(on_path(path)) > 1 for path in GENERATE)


def test_every_field_with_a_rule_is_read_and_has_its_bound() -> None:
    """`peek` reads the guarded fields only; a bound needs a unit and a number."""
    for field in ENGINE_FIELDS:
        assert field.action == "pass" or field.name in GUARDED
        assert (field.action == "bound") == (field.most is not None) == (field.unit is not None)
        assert field.why
