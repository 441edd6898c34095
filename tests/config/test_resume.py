"""aiaas.config.resume: a backend with `resume` has somewhere to go on, and notices a hang in time."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.backend import SILENT_AFTER
from aiaas.config.check import check
from aiaas.config.load import load_text
from aiaas.plan.compile import compile_plan


def loaded_with(**fields: Any) -> Any:
    """A config with one backend."""
    backend = {"urls": ["http://a", "http://b"], "models": ["m"], **fields}
    config = {"backends": {"x": {name: value for name, value in backend.items() if value is not None}}}
    return load_text(yaml.safe_dump(config), file="f", env={})


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        pytest.param({"resume": "exact"}, [], id="two urls"),
        pytest.param({"resume": "near", "urls": None, "dns": "name:80"}, [], id="a name"),
        pytest.param({"urls": ["http://a"]}, [], id="off"),
        pytest.param({"resume": "exact", "urls": ["http://a"], "enabled": False}, [], id="disabled"),
        pytest.param({"resume": "exact", "urls": ["http://a"]}, ["backends.x.resume"], id="one of urls"),
        pytest.param({"resume": "near", "urls": None, "url": "http://a"}, ["backends.x.resume"], id="url"),
        pytest.param(
            {"resume": "exact", "timeout": "10s"}, ["backends.x.health.silent_after"], id="default not below timeout"
        ),
        pytest.param({"resume": "exact", "timeout": "10s", "health": {"silent_after": "9s"}}, [], id="below timeout"),
        pytest.param({"resume": "exact", "timeout": "10s", "health": {"silent_after": "0s"}}, [], id="rule off"),
    ],
)
def test_warnings_name_their_field(fields: dict[str, Any], places: list[str]) -> None:
    """Each with its code; none where streams can go on."""
    found = [problem for problem in check(loaded_with(**fields), {}) if problem.code == "AIA229"]
    assert [(problem.path, problem.severity) for problem in found] == [(place, "warning") for place in places]


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        pytest.param({}, 0.0, id="off"),
        pytest.param({"resume": "exact"}, SILENT_AFTER, id="on with resume"),
        pytest.param({"resume": "exact", "health": {"silent_after": "0s"}}, 0.0, id="turned off"),
        pytest.param({"health": {"silent_after": "7s"}}, 7.0, id="without resume"),
    ],
)
def test_hangs_are_noticed_by_default_where_streams_go_on(fields: dict[str, Any], seconds: float) -> None:
    """Without `resume` a stream that stands still would only be lost sooner."""
    plan = compile_plan(loaded_with(**fields).config)
    assert plan.backends[0].health.silent_after == seconds
