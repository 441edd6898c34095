"""Texts that have to be networks."""

from __future__ import annotations

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.load import load_text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10.0.0.0/8", None),
        ("10.0.0.7", None),
        ("fd00::/8", None),
        ("10.0.0.7/8", "did you mean 10.0.0.0/8?"),
        ("proxy", "write CIDR, such as 10.0.0.0/8"),
    ],
)
def test_networks_are_checked_wherever_they_stand(text: str, hint: str | None) -> None:
    """Those of proxies, and those of DNS servers; an address alone is one."""
    config = {
        "server": {"trusted_proxies": [text]},
        "backends": {"v": {"url": "http://v:8000", "models": ["m"]}},
        "kubernetes": {
            "expose": "none",
            "image": "r/a:1",
            "network_policy": {"dns": {"cidrs": [text]}},
        },
    }
    loaded = load_text(yaml.safe_dump(config), file="f", env={})
    found = [(each.path, each.message) for each in check(loaded, {}) if each.code == "AIA208"]
    message = f"{text!r} is not a network; {hint}"
    places = ["server.trusted_proxies[0]", "kubernetes.network_policy.dns.cidrs[0]"]
    assert sorted(found) == sorted([(place, message) for place in places] if hint else [])
