"""Renders a config's text for services of one machine, as `aiaas render --target systemd` does but without files."""

from __future__ import annotations

from aiaas.config.check import check
from aiaas.config.load import load_text
from aiaas.config.systemd import check_systemd
from aiaas.manifests.systemd import UNITS_FOLDER, systemd_files
from aiaas.plan.systemd import SystemdPlan, plan_systemd

BACKEND = "backends: {vllm: {url: 'http://192.0.2.7:8000', models: [m]}}\n"
ENGINE = "backends: {qwen: {models: [m], engine: {kind: vllm, port: 18200}}}\n"


def plan_of(text: str, env: dict[str, str] | None = None) -> SystemdPlan:
    """The plan of a config without errors."""
    loaded = load_text(text, file="aiaas.yaml", env=env or {})
    found = loaded.problems + check(loaded, env or {}) + check_systemd(loaded)
    assert [str(problem) for problem in found if problem.severity == "error"] == []
    return plan_systemd(loaded, env or {})


def files_of(text: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """Path -> text of each file."""
    return systemd_files(plan_of(text, env), "aiaas.yaml")


def values_of(text: str, name: str, unit: str = "aiaas@.service", env: dict[str, str] | None = None) -> list[str]:
    """The values of a setting in a rendered unit, in order."""
    lines = files_of(text, env)[f"{UNITS_FOLDER}/{unit}"].splitlines()
    return [line.removeprefix(f"{name}=") for line in lines if line.startswith(f"{name}=")]
