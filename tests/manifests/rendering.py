"""Renders a config's text for the tests, as `aiaas render` does but without files."""

from __future__ import annotations

from typing import Any

from aiaas.config.check import check
from aiaas.config.deployment import check_deployment
from aiaas.config.load import load_text
from aiaas.config.problem import Problem
from aiaas.manifests.render import render_manifests
from aiaas.plan.kubernetes import KubernetesPlan, plan_kubernetes

BACKEND = "backends:\n  vllm: {url: 'http://vllm-gpt-oss-20b.system:8000', models: [m]}\n"
MINIMAL = BACKEND + "kubernetes: {image: 'r/aiaas:1', host: api.example.com}\n"
TLS = "server: {tls: {cert_file: a.pem, key_file: a.key}}\n"
KEYS = "version: 1\nkeys: []\n"


def plan_or_problems(text: str, env: dict[str, str] | None = None) -> tuple[KubernetesPlan | None, tuple[Problem, ...]]:
    """The KubernetesPlan of a config without errors, or the obstacles."""
    loaded = load_text(text, file="aiaas.yaml", env=env or {})
    found = loaded.problems + check(loaded, env or {})
    assert [str(problem) for problem in found if problem.severity == "error"] == []
    obstacles = tuple(problem for problem in check_deployment(loaded) if problem.severity == "error")
    return (None, obstacles) if obstacles else (plan_kubernetes(loaded, env or {}), ())


def plan_of(text: str, env: dict[str, str] | None = None) -> KubernetesPlan:
    """The KubernetesPlan of a config that can be deployed."""
    plan, problems = plan_or_problems(text, env)
    assert plan is not None, [str(problem) for problem in problems]
    return plan


def objects_of(text: str, env: dict[str, str] | None = None, keys_text: str | None = KEYS) -> dict[str, Any]:
    """`Kind/name` -> object, in the order of application."""
    made = render_manifests(plan_of(text, env), keys_text)
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in made}


def one(text: str, kind: str, env: dict[str, str] | None = None) -> Any:
    """The only object of that kind."""
    [found] = [made for made in objects_of(text, env).values() if made["kind"] == kind]
    return found


def with_kubernetes(**fields: str) -> str:
    """MINIMAL with further fields in its `kubernetes` section, each as YAML."""
    given = {"image": "'r/aiaas:1'", "host": "api.example.com"} | fields
    return BACKEND + "kubernetes:\n" + "".join(f"  {name}: {value}\n" for name, value in given.items())
