"""Texts of the config that have to be networks. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from aiaas.config import codes
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.yamltree import Path


def check_networks(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Report each text that is not CIDR, with the network that was probably meant."""
    policy, section = config.kubernetes.network_policy, ("kubernetes", "network_policy")
    named: list[tuple[Path, tuple[str, ...]]] = [
        (("server", "trusted_proxies"), config.server.trusted_proxies),
        ((*section, "dns", "cidrs"), policy.dns.cidrs),
    ]
    for direction, peers in (("ingress", policy.ingress), ("egress", policy.egress)):
        named += [((*section, direction, index, "cidrs"), each.cidrs) for index, each in enumerate(peers)]
    for path, texts in named:
        for index, text in enumerate(texts):
            if not _is_network(text):
                yield codes.BAD_NETWORK, "error", (*path, index), f"{text[:60]!r} is not a network; {_hint(text)}"


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _hint(text: str) -> str:
    try:
        return f"did you mean {ipaddress.ip_network(text, strict=False)}?"
    except ValueError:
        return "write CIDR, such as 10.0.0.0/8"
