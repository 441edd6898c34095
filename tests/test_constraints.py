"""The README's commands and the image install the tested versions: constraints.txt, in one place."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository_rules import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned(name: str) -> dict[str, str]:
    """The version of each package that a file pins."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {canonicalize_name(found[1]): found[2] for found in re.finditer(r"^([\w.-]+)==([^\s;\\]+)", text, re.M)}


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, but the engine: it has an environment of its own."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"]
    texts += [text for name in ("test", "dev", "tools") for text in extras[name]]
    return [Requirement(text) for text in texts if not text.startswith("aiaas")]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    """`nox -s lock` writes constraints.txt anew where pyproject.toml has changed."""
    assert pinned("constraints.txt").get(canonicalize_name(requirement.name)) in requirement.specifier


@pytest.mark.parametrize("name", ["docker/requirements.txt", "docker/build.txt"])
def test_the_image_holds_the_same_versions(name: str) -> None:
    """Its hashes come from the same source: nothing runs in production that no test ran with."""
    assert pinned(name).items() <= pinned("constraints.txt").items()


def test_build_backend_is_pinned_too() -> None:
    """pip applies no constraints to the build's environment, so pyproject.toml itself names the version."""
    [build] = PROJECT["build-system"]["requires"]
    assert build == f"hatchling=={pinned('constraints.txt')['hatchling']}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_every_printed_install_command_uses_the_constraints(page: str) -> None:
    """Nobody has tested the versions that are installed without them."""
    commands = re.findall(r"python -m pip install .*", (ROOT / page).read_text(encoding="utf-8"))
    assert commands
    assert [command for command in commands if "install -c constraints.txt " not in command] == []
