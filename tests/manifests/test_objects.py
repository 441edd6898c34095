"""The fields that every object shares."""

from __future__ import annotations

import pytest

from aiaas.manifests.objects import quantity
from tests.manifests.rendering import objects_of, with_kubernetes


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        pytest.param("1000m", "1", id="the plan's CPU"),
        pytest.param("500m", "500m", id="half a CPU"),
        pytest.param("0.5", "500m", id="half a CPU, decimal"),
        pytest.param("1.5", "1500m", id="one and a half"),
        pytest.param("2", "2", id="whole"),
        pytest.param("256Mi", "256Mi", id="the plan's memory"),
        pytest.param("1024Mi", "1Gi", id="a power more"),
        pytest.param("1536Mi", "1536Mi", id="between powers"),
        pytest.param("0.5Gi", "512Mi", id="half of a power"),
        pytest.param("1500M", "1500M", id="decimal"),
        pytest.param("2000M", "2G", id="decimal, a power more"),
        pytest.param("1000000", "1M", id="bytes, decimal"),
        pytest.param("0", "0", id="nothing"),
    ],
)
def test_a_quantity_is_written_as_the_api_server_writes_it(given: str, canonical: str) -> None:
    """Otherwise every apply would find a difference."""
    assert quantity(given) == canonical


def test_every_object_bears_our_labels_and_the_operators() -> None:
    """The operator's labels are on objects and pods, and cannot break the selector."""
    made = objects_of(with_kubernetes(labels="{team: search, app: mine}", annotations="{owner: ada}"))
    for name, each in made.items():
        labels = each["metadata"]["labels"]
        assert (labels["team"], labels["app"]) == ("search", "api-router-service"), name
        assert each["metadata"]["annotations"]["owner"] == "ada", name
    template = made["Deployment/api-router-service"]["spec"]["template"]["metadata"]
    assert (template["labels"]["team"], template["annotations"]["owner"]) == ("search", "ada")
