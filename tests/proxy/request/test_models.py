"""aiaas.proxy.request.models: ids in paths. The content of the answers is tested over the wire in test_gateway.py."""

import pytest

from aiaas.openai import paths
from aiaas.proxy.request.models import model_id, model_not_found


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/models/m", "m"),
        ("/v1/models/org/m", "org/m"),
        ("/v1/models/org%2Fm", "org/m"),
        ("/v1/models/", ""),
        ("/v1/models/%ff", "�"),
        ("/v1/models/a+b", "a+b"),
    ],
)
def test_an_id_may_have_slashes_sent_as_they_are_or_escaped(path: str, wanted: str) -> None:
    """A plus is a plus: a path is not form-encoded."""
    assert paths.is_models_path(path)
    assert model_id(path) == wanted


def test_a_long_or_odd_name_is_shown_in_part() -> None:
    """An error message is for a person, and must be encodable."""
    assert len(model_not_found("x" * 10_000).message) < 200
    model_not_found("\udcff").message.encode()
