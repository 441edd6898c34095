"""The fields of the model, by path: for suggestions, the manual, and tests that try all fields."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from aiaas.config.model import Config
from aiaas.config.section import Section
from aiaas.yamltree import Path


def name_of(name: str, info: FieldInfo) -> str:
    """Return the field's name in the file."""
    return info.alias or name


def fields_of(path: Path) -> Mapping[str, FieldInfo]:
    """Return the fields of the mapping at `path`; empty if it takes any key, or if `path` is not a section."""
    section: type[Section] | None = Config
    free = False  # whether the next part is a name that the operator chose, or an index
    for part in path:
        if section is not None and free:
            free = False
            continue
        info = _named(section).get(str(part)) if section is not None else None
        if info is None:
            return {}
        section, free = section_in(info.annotation)
    return _named(section) if section is not None and not free else {}


def _named(section: type[Section]) -> dict[str, FieldInfo]:
    return {name_of(name, info): info for name, info in section.model_fields.items()}


def section_in(annotation: Any) -> tuple[type[Section] | None, bool]:
    """Return the Section inside a field's type, and whether a name or an index comes before it in a path."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    origin = typing.get_origin(annotation)
    if origin in (dict, tuple):
        for argument in typing.get_args(annotation):
            section, _ = section_in(argument)
            if section is not None:
                return section, True
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(annotation):
            section, free = section_in(argument)
            if section is not None:
                return section, free
    return None, False


def all_fields(
    section: type[Section] = Config, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield every field of the config, depth first, in the model's order. `*` stands for a name or an index."""
    for name, info in _named(section).items():
        yield (*path, name), info
        inner, free = section_in(info.annotation)
        if inner is not None:
            yield from all_fields(inner, (*path, name, "*") if free else (*path, name))
