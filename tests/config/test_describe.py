"""The words of the config's sections and fields."""

from __future__ import annotations

from aiaas.config.describe import described_sections
from aiaas.config.fields import all_fields


def test_every_field_is_described_once_with_its_facts() -> None:
    """Each field of the model stands in one section, with a type and a sentence."""
    described = {(*section.path, field.name): field for section in described_sections() for field in section.fields}
    assert set(described) == {path for path, _ in all_fields()}
    assert all(field.type and field.text.endswith((".", ")")) for field in described.values())


def test_a_required_field_has_no_default() -> None:
    """It says `required` instead."""
    (url,) = (
        field for section in described_sections() if not section.path for field in section.fields if field.required
    )
    assert (url.name, url.default) == ("backends", "")
