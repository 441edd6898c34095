"""`aiaas schema`."""

from __future__ import annotations

import json

import pytest

from aiaas.cli.main import run
from aiaas.config.schema import config_schema


def test_the_schema_is_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout holds the schema and nothing else; stderr is empty."""
    assert run(["schema"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == config_schema()
    assert err == ""
