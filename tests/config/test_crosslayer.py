"""Rules between proxy and cluster. What each says is in cases/cluster-*; here is what a text alone cannot earn."""

from __future__ import annotations

import pytest

from aiaas.config.check import check
from aiaas.config.crosslayer import check_keys_secret
from aiaas.config.load import load_text

TEXT = "backends:\n  v: {url: 'http://v:8000', models: [m]}\n"


def test_a_config_that_is_not_deployed_is_not_held_to_a_clusters_rules() -> None:
    """A gateway on a laptop hears nothing about ingresses; the same config being rendered does."""
    loaded = load_text(TEXT, file="f", env={})
    assert check(loaded, {}) == ()
    assert "AIA510" in [problem.code for problem in check(loaded, {}, deployed=True)]


@pytest.mark.parametrize(
    ("size", "found"),
    [
        pytest.param(190 * 1024, [], id="a thousand keys"),
        pytest.param(200 * 1024, ["warning"], id="more than an annotation holds in base64"),
        pytest.param(1024**2, ["warning"], id="just a Secret"),
        pytest.param(1024**2 + 1, ["error"], id="more than a Secret holds"),
    ],
)
def test_the_keys_have_to_fit_into_a_secret(size: int, found: list[str]) -> None:
    """From 192 KiB on only a server-side apply takes them, beyond 1 MiB nothing does."""
    config = load_text(TEXT, file="f", env={}).config
    assert config is not None
    assert [severity for _, severity, _, _ in check_keys_secret(config, size)] == found


def test_keys_that_something_else_keeps_are_its_business() -> None:
    """A Secret that exists already is not rendered."""
    config = load_text(TEXT + "kubernetes: {keys_secret: {create: false}}\n", file="f", env={}).config
    assert config is not None
    assert list(check_keys_secret(config, 10 * 1024**2)) == []
