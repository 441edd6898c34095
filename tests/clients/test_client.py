"""The form of a row."""

from __future__ import annotations

import dataclasses

import pytest

from aiaas.clients.table import CLIENTS


def test_row_cannot_be_changed() -> None:
    """The table is the same for all commands of a process."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLIENTS[0].name = "other"  # type: ignore[misc]
