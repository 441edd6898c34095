"""Makes the plan of a compose file from a config's text, as `aiaas render --target compose` does but without files."""

from __future__ import annotations

from typing import Any

from aiaas.config.check import check
from aiaas.config.compose import check_compose
from aiaas.config.load import load_text
from aiaas.manifests.compose import compose_file
from aiaas.plan.compose import ComposePlan, plan_compose

BACKEND = "backends: {vllm: {url: 'http://10.0.0.7:8000', models: [m]}}\n"
ENGINE = "backends: {qwen: {engine: {kind: vllm}, models: [Qwen/Qwen3-8B]}}\n"


def engine(**fields: str) -> str:
    """A config with one engine with these fields, each as YAML."""
    given = {"kind": "vllm"} | fields
    return ENGINE.replace("{kind: vllm}", "{" + ", ".join(f"{name}: {value}" for name, value in given.items()) + "}")


def compose_plan(text: str, env: dict[str, str] | None = None, domain: str | None = None) -> ComposePlan:
    """The ComposePlan of a config without errors."""
    loaded = load_text(text, file="aiaas.yaml", env=env or {})
    found = loaded.problems + check(loaded, env or {}, deployed=False) + check_compose(loaded)
    assert [str(problem) for problem in found if problem.severity == "error"] == []
    return plan_compose(loaded, env or {}, domain=domain)


def services(text: str, env: dict[str, str] | None = None, domain: str | None = None) -> Any:
    """The services of the compose file."""
    return compose_file(compose_plan(text, env, domain))["services"]
