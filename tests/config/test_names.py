"""Names of Kubernetes: what a field refuses and takes."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from aiaas.config.names import ImageName

DIGEST = "sha256:" + 64 * "0"


@pytest.mark.parametrize(
    ("image", "right"),
    [
        ("aiaas", True),
        ("aiaas:1.0_x-Y", True),
        ("localhost:5000/a/b__c-d.e:1", True),
        ("[::1]:5000/a", True),
        ("Registry.Example.com/team/aiaas", True),
        (f"r/a@{DIGEST}", True),
        (f"r/a:1@{DIGEST}", True),
        ("", False),
        ("r/A:1", False),
        ("r/a:1:2", False),
        ("r/a:", False),
        ("r//a", False),
        ("https://r/a", False),
        ("r/a b", False),
        ("r/a@sha256:0123", False),
        ("r/a:" + 129 * "1", False),
        ("r/a_-b", False),
    ],
)
def test_an_image_has_the_form_of_a_reference(image: str, right: bool) -> None:
    """A pod with another name waits forever (InvalidImageName)."""
    adapter: TypeAdapter[str] = TypeAdapter(ImageName)
    if right:
        assert adapter.validate_python(image) == image
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(image)
