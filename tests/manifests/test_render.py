"""The whole rendering: order and bytes."""

from __future__ import annotations

import yaml

from aiaas import __version__
from aiaas.manifests.render import MANIFEST_KINDS, render_manifests, to_files, to_stream
from tests.manifests.rendering import KEYS, MINIMAL, plan_of, with_kubernetes


def stream_of(text: str) -> str:
    """The output of `aiaas render`."""
    plan = plan_of(text)
    return to_stream(plan, render_manifests(plan, KEYS), "aiaas.yaml")


def files_of(text: str) -> dict[str, str]:
    """The files that `aiaas render --output-dir` writes."""
    plan = plan_of(text)
    return to_files(plan, render_manifests(plan, KEYS), "aiaas.yaml")


def test_rendering_twice_gives_equal_bytes() -> None:
    """Without a time or the order of a hash."""
    assert stream_of(MINIMAL) == stream_of(MINIMAL)


def test_comments_and_layout_of_the_config_do_not_count() -> None:
    """Another comment rolls no pod."""
    assert stream_of(MINIMAL) == stream_of("# a comment\n" + MINIMAL.replace(": {url", ":   {url"))


def test_referenced_object_comes_first() -> None:
    """Kinds stand in the order in which one `kubectl apply` can take them."""
    kinds = [each["kind"] for each in render_manifests(plan_of(with_kubernetes(create_namespace="true")), KEYS)]
    assert kinds == sorted(kinds, key=MANIFEST_KINDS.index)
    assert kinds[:4] == ["Namespace", "ServiceAccount", "ConfigMap", "Secret"]
    assert kinds.index("Deployment") > kinds.index("Service")


def test_the_stream_says_what_it_was_made_from() -> None:
    """File, version and digest are at the top: the digest that the pods report."""
    plan = plan_of(MINIMAL)
    first, second, *_ = stream_of(MINIMAL).splitlines()
    assert first == f"# Made by `aiaas render` (aiaas {__version__}) from aiaas.yaml: change that, not this."
    assert second == f"# Config digest: {plan.gateway.digest}"
    assert {text.splitlines()[0] for text in files_of(MINIMAL).values()} == {first}


def test_another_config_changes_few_files() -> None:
    """A diff in review shows the change: the config, and the Deployment that names it by its content."""
    before, after = files_of(MINIMAL), files_of(MINIMAL + "request: {max_choices: 2}\n")
    assert set(before) == set(after)
    assert {name for name in before if before[name] != after[name]} == {
        "configmap-api-router-config.yaml",
        "deployment-api-router-service.yaml",
    }


def test_the_stream_is_one_document_for_each_object() -> None:
    """Every YAML reader gets back exactly what was rendered."""
    assert list(yaml.safe_load_all(stream_of(MINIMAL))) == list(render_manifests(plan_of(MINIMAL), KEYS))
