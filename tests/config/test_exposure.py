"""aiaas.config.exposure: the warnings of validate, and where there are none."""

from __future__ import annotations

import pytest

from aiaas.config.check import check
from aiaas.config.load import load_text

BACKENDS = 'backends: {v: {url: "http://v:8000", models: [m]}}\n'


def codes_of(text: str) -> list[str]:
    """The codes of all problems of a config with these sections."""
    loaded = load_text(BACKENDS + text, file="aiaas.yaml", env={})
    assert loaded.problems == ()
    return [problem.code for problem in check(loaded, {})]


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("server: {trusted_proxies: [10.0.0.0/8, 192.168.0.0/16, 8.0.0.0/8]}", []),
        ('server: {trusted_proxies: ["fc00::/7", "fe80::/10", "2001:db8::/32", "2600::/16"]}', []),
        ("server: {trusted_proxies: [8.0.0.0/7]}", ["AIA221"]),
        ('server: {trusted_proxies: ["2600::/15"]}', ["AIA221"]),
        ("server: {header_timeout: 5m, body_timeout: 300s, body_total_timeout: 1h}", []),
        ("server: {header_timeout: 301s}", ["AIA222"]),
        ("server: {body_timeout: 301s, body_total_timeout: 1h}", ["AIA222"]),
        ("server: {body_total_timeout: 3601s}", ["AIA222"]),
        ("server: {cors: {allow_origins: ['https://chat.example.com']}}", []),
        ("server: {cors: {allow_origins: ['https://chat.example.com', '*']}}", ["AIA223"]),
        ("request: {media_urls: deny}", []),
        ("request: {media_urls: allow}", ["AIA224"]),
    ],
)
def test_settings_beyond_their_bound_are_warned_of(text: str, codes: list[str]) -> None:
    """Settings at their limit are not."""
    assert codes_of(text + "\n") == codes
