"""aiaas.proxy.target: request targets as RFC 9112 section 3.2 writes them."""

import pytest

from aiaas.proxy.target import path_of


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models?x=/y?z", "/v1/models"),
        ("//v1/models", "//v1/models"),
        ("/http://x/y", "/http://x/y"),
        ("http://host/v1/models?x=1", "/v1/models"),
        ("HTTPS://user@host:1/v1/models", "/v1/models"),
        ("http://host", "/"),
        ("http://host?x=/v1/models", "/"),
        ("http://host//v1/models", "//v1/models"),
        ("host:443", None),
        ("*", None),
        ("ftp://host/v1/models", None),
        ("v1/models", None),
        ("", None),
    ],
)
def test_the_path_of_a_target(target: str, path: str | None) -> None:
    """Without query and authority; nothing is normalised, since nothing but equal paths is served."""
    assert path_of(target) == path
