"""The examples as compose files, as they are checked in: a strict model, Docker Compose itself, and that the container
runs the Plan that was rendered."""

from __future__ import annotations

import ast
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from aiaas.cli.rendercompose import plan_for_compose
from aiaas.config.deployment import STAND_IN
from aiaas.config.load import load_text
from aiaas.manifests.compose import compose_files, environment_example
from aiaas.plan.compile import compile_plan
from aiaas.plan.compose import ComposePlan
from tests.manifests import compose_model
from tests.repository_rules import ROOT


def rendered_by_nox() -> dict[str, str | None]:
    """The configs that `nox -s golden` renders as compose files, with their domains; nox need not be installed."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    [table] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPOSE_EXAMPLES"
    ]
    examples: dict[str, tuple[str, ...]] = ast.literal_eval(table)
    return {source: options[1] if options else None for source, options in examples.items()}


DOMAINS = rendered_by_nox()
DOCKER = next(filter(None, map(shutil.which, ("docker-compose", "docker"))), None)


@lru_cache(maxsize=8)
def rendering(source: str) -> tuple[ComposePlan, dict[str, str]]:
    """As `nox -s golden` does it."""
    path = ROOT / source
    plan, keys_text = plan_for_compose([path], DOMAINS[source])
    return plan, compose_files(plan, path.name, keys_text)


@pytest.fixture(params=DOMAINS, ids=lambda source: Path(source).stem)
def source(request: pytest.FixtureRequest) -> str:
    """Each example in turn."""
    name: str = request.param
    return name


def test_it_is_what_is_checked_in(source: str) -> None:
    """manifests/compose/<example>/ holds exactly this rendering; `nox -s golden` writes it."""
    folder = ROOT / "manifests" / "compose" / Path(source).stem
    golden = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    files = rendering(source)[1]
    assert {name: text for name, text in files.items() if not name.endswith("/")} == golden, "nox -s golden"


def test_it_is_sound(source: str) -> None:
    """Fields, forms and references."""
    assert compose_model.findings(yaml.safe_load(rendering(source)[1]["compose.yaml"])) == []


def test_the_container_runs_the_plan_that_was_rendered(source: str) -> None:
    """The config, loaded and compiled where it is mounted, equals the Plan; its digest is at the top."""
    plan, files = rendering(source)
    env = dict.fromkeys(plan.variables, STAND_IN)
    config = load_text(files["config/config.yaml"], file="config.yaml", env=env).config
    assert config is not None
    made = compile_plan(config, source=Path("/etc/aiaas/config/config.yaml"), env=env)
    assert made == plan.gateway
    assert files["compose.yaml"].splitlines()[1] == f"# Config digest: {made.digest}"


def broken(change: dict[str, Any]) -> Any:
    """A compose file with a change in its gateway."""
    made = yaml.safe_load(rendering("examples/engine.yaml")[1]["compose.yaml"])
    made["services"]["gateway"] |= change
    return made


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"privileged": True}, id="an unknown field"),
        pytest.param({"stop_grace_period": 310}, id="a number for a duration"),
        pytest.param({"cap_drop": []}, id="capabilities"),
        pytest.param({"ports": ["8080"]}, id="a port of Docker's choice"),
    ],
)
def test_model_refuses_what_is_wrong(change: dict[str, Any]) -> None:
    """The test above can fail."""
    with pytest.raises(ValidationError):
        compose_model.findings(broken(change))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param({"depends_on": {"x": {"condition": "service_started"}}}, "gateway depends on x", id="a service"),
        pytest.param({"secrets": ["x"]}, "gateway uses the secret x", id="a secret"),
        pytest.param({"volumes": ["x:/x"]}, "gateway mounts x", id="a volume"),
        pytest.param({"ports": ["80:80", "127.0.0.1:80:81"]}, "gateway publishes 80", id="a port"),
        pytest.param({"environment": {"A": "$B"}}, "'$B' has a $", id="an expansion"),
    ],
)
def test_model_finds_what_a_schema_cannot_see(change: dict[str, Any], found: str) -> None:
    """Names that nothing bears, ports that are taken, text that Compose would change."""
    assert [each for each in compose_model.findings(broken(change)) if each.startswith(found)]


def docker_compose(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`docker compose config`, which needs no engine."""
    assert DOCKER is not None
    command = [DOCKER, *([] if DOCKER.endswith("compose") else ["compose"]), "config", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.compose
@pytest.mark.skipif(DOCKER is None, reason="no docker-compose and no docker on PATH: nox -s compose")
def test_docker_compose_accepts_it(source: str, tmp_path: Path) -> None:
    """With the published schema inside, once .env has every variable, and not without."""
    plan, files = rendering(source)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (tmp_path / name).write_text(text)
    if plan.variables:
        refused = docker_compose(tmp_path, "--quiet")
        assert "is missing a value: write it into .env (.env.example lists all variables)" in refused.stderr
    example = environment_example(plan)
    filled_in = [f"{line}x$1" if line.endswith("=") else line for line in example.splitlines()]
    (tmp_path / ".env").write_text("\n".join(filled_in))
    done = docker_compose(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    made = yaml.safe_load(done.stdout)
    assert made["services"].keys() == yaml.safe_load(files["compose.yaml"])["services"].keys()
    assert made["services"]["gateway"]["user"] == "10001:10001"
