"""The rendering of the integration plan's config beside the plan's own YAML: every difference stands in
docs/manifests.md, and every row there is a difference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from aiaas.cli.render import objects_of, plan_for_cluster
from tests.manifests.checks import reference
from tests.repository_rules import ROOT

PLAN = Path(__file__).with_name("plan.yaml")
PAGE = ROOT / "docs" / "manifests.md"
EMPTY: Any = object()


def opened(made: Any) -> Any:
    """An object with the config inside it as data, so that its comments and quotes do not count."""
    if made["kind"] == "ConfigMap":
        return made | {"data": {name: yaml.safe_load(text) for name, text in made["data"].items()}}
    return made


def differences(plan: Any, ours: Any, path: str) -> Iterator[str]:
    """The paths at which two objects differ, each as high up as the difference begins. Items of a list are found by
    their content, not by their place."""
    if isinstance(plan, dict) and isinstance(ours, dict):
        for key in [*plan, *(key for key in ours if key not in plan)]:
            yield from differences(plan.get(key, EMPTY), ours.get(key, EMPTY), f"{path}.{key}")
    elif isinstance(plan, list) and isinstance(ours, list):
        rest = [item for item in ours if item not in plan]
        for index, item in enumerate(item for item in plan if item not in ours):
            yield from differences(item, rest.pop() if rest else EMPTY, f"{path}[{index}]")
        if rest:
            yield f"{path}[+]"
    elif plan != ours:
        yield path


def found() -> set[str]:
    """Every difference between the plan and its rendering."""
    plan, keys_text = plan_for_cluster(ROOT / "examples" / "plan.yaml")
    ours = {reference(made): opened(made) for made in objects_of(plan, keys_text)}
    theirs = {reference(made): opened(made) for made in yaml.safe_load_all(PLAN.read_text())}
    assert set(theirs) <= set(ours)
    paths = {path for name in theirs for path in differences(theirs[name], ours[name], theirs[name]["kind"])}
    return {re.sub(r"^(\w+)\.metadata\.labels$", "*.metadata.labels", path) for path in paths}


def listed() -> set[str]:
    """The first column of the page's table."""
    section = PAGE.read_text(encoding="utf-8").partition("## Differences from the integration plan")[2]
    return set(re.findall(r"^\| `([^`]+)` \|", section.partition("\n## ")[0], re.MULTILINE))


def test_each_difference_from_the_plan_is_listed_with_its_reason() -> None:
    """docs/manifests.md holds a row for each field in which a rendered object is not the plan's, and no other row."""
    assert found() == listed()


def test_differences_are_found() -> None:
    """The comparison above finds changed, missing and added values, in mappings and lists."""
    plan = {"a": 1, "b": [1, {"c": 2}], "d": 3}
    ours = {"a": 2, "b": [{"c": 3}, 1, 4], "e": {"f": 1}}
    assert set(differences(plan, ours, "x")) == {"x.a", "x.b[0]", "x.b[+]", "x.d", "x.e"}
