"""`aiaas render`'s objects before a real API server: accepted whole, without a warning, and the second time nothing
changes. Needs `KUBEBUILDER_ASSETS` (`nox -s apiserver`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from aiaas.manifests.render import render_manifests as render_plan
from tests.apiserver.server import PATHS, ApiServer, api_server
from tests.manifests.rendering import KEYS, plan_or_problems
from tests.manifests.test_combinations import BACKENDS, FIELDS, REST, SECRET, config, is_valid
from tests.manifests.test_examples import EXAMPLES, render

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One for all tests; each example has namespaces of its own in it."""
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    with api_server(assets, tmp_path_factory.mktemp("apiserver")) as found:
        for name in ("default", "n" * 63, "system"):
            found.make_namespace(name)
        yield found


def known(objects: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Those whose kinds need no operator."""
    return [made for made in objects if made["kind"] in PATHS]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_applied_twice_warns_not_and_changes_nothing(server: ApiServer, path: Path) -> None:
    """Strictly, under Pod Security `restricted`. A change would show in the object, at least in its generation."""
    namespace = f"example-{path.stem}"
    server.make_namespace(namespace)
    objects = [moved(made, namespace) for made in known(render(path).objects) if made["kind"] != "Namespace"]
    first = [server.apply(made) for made in objects]
    assert [(answer.status, answer.warnings) for answer in first] == [(201, ())] * len(objects), first
    second = [server.apply(made) for made in objects]
    assert [unversioned(answer.body) for answer in second] == [unversioned(answer.body) for answer in first]


def unversioned(body: dict[str, Any]) -> dict[str, Any]:
    """The stored object without its resourceVersion: a claim's changes once, whatever is applied, and nothing else."""
    return {**body, "metadata": {**body["metadata"], "resourceVersion": ""}}


def moved(made: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The object in another namespace, so that examples do not meet."""
    return {**made, "metadata": {**made["metadata"], "namespace": namespace}}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(BACKENDS, FIELDS, REST)
def test_whatever_is_chosen_is_taken(
    server: ApiServer, backends: list[str], fields: dict[str, str], rest: list[str]
) -> None:
    """Options that no example has together."""
    text = config(backends, fields, rest)
    assume(is_valid(text))
    plan, _ = plan_or_problems(text, SECRET)
    assume(plan is not None)
    assert plan is not None
    for made in known(render_plan(plan, KEYS)):
        answer = server.apply(made, dry_run=True)
        assert (answer.status, answer.warnings) in ((200, ()), (201, ())), (made, answer)


def test_pod_against_restricted_is_warned_of(server: ApiServer) -> None:
    """The check itself: the server sees what it is to see."""
    [made] = [made for made in known(render(EXAMPLES[-1]).objects) if made["kind"] == "Deployment"]
    made = moved(made, "system")
    pod = {**made["spec"]["template"]["spec"], "securityContext": {}}
    spec = {**made["spec"], "template": {**made["spec"]["template"], "spec": pod}}
    answer = server.apply({**made, "spec": spec}, dry_run=True)
    assert "would violate PodSecurity" in "".join(answer.warnings)
    answer = server.apply({**made, "spec": {**made["spec"], "replica": 1}}, dry_run=True)
    assert "field not declared in schema" in answer.body["message"]
