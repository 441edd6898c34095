"""The base of every section of a config: it rejects unknown fields, freezes values, and reads an empty section as its
defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of the config. `section:` with nothing below it means the same as leaving the section out."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
        ser_json_inf_nan="null",
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return {} if value is None else value
