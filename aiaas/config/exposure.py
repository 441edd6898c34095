"""Warnings about valid settings that open the gateway wider than most people intend. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Network, ip_network
from typing import Final

from aiaas.config import codes
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.units import format_duration

# A network with a shorter prefix is larger than any company's: 10.0.0.0/8 is the largest private network of IPv4.
LEAST_PREFIX_V4: Final = 8
LEAST_PREFIX_V6: Final = 16
# Addresses that the internet does not route, whatever their prefix (RFC 4193, RFC 4291).
_LOCAL_V6: Final = (IPv6Network("fc00::/7"), IPv6Network("fe80::/10"))
# Seconds; honest clients do not pause this long within their headers or their body.
LONGEST_SILENCE: Final = 300.0
LONGEST_BODY: Final = 3600.0


def trusted_anybody(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Warn if proxies are trusted from almost every address."""
    for index, text in enumerate(config.server.trusted_proxies):
        if _is_practically_everybody(text):
            message = (
                f"{text} trusts practically everybody: any client can then fake its address; "
                "write the networks of the proxies in front of the gateway"
            )
            yield codes.TRUSTED_ANYBODY, "warning", ("server", "trusted_proxies", index), message


def _is_practically_everybody(text: str) -> bool:
    try:
        network = ip_network(text)
    except ValueError:  # another rule reports it
        return False
    if isinstance(network, IPv6Network):
        return network.prefixlen < LEAST_PREFIX_V6 and not any(network.subnet_of(local) for local in _LOCAL_V6)
    return network.prefixlen < LEAST_PREFIX_V4


def endless_patience(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Warn if a timeout lets a client hold a connection for hours."""
    server = config.server
    bounds = (
        ("header_timeout", server.header_timeout, LONGEST_SILENCE),
        ("body_timeout", server.body_timeout, LONGEST_SILENCE),
        ("body_total_timeout", server.body_total_timeout, LONGEST_BODY),
    )
    for name, seconds, most in bounds:
        if seconds > most:
            message = (
                f"a client can hold a connection for {format_duration(seconds)} without sending a request; "
                f"write {format_duration(most)} or less"
            )
            yield codes.ENDLESS_PATIENCE, "warning", ("server", name), message


def any_origin(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Warn if pages of every site may call the gateway."""
    cors = config.server.cors
    for index, origin in enumerate(cors.allow_origins if cors is not None else ()):
        if origin == "*":
            message = "any web page that has a key may call the gateway; write the origins of your own pages"
            yield codes.ANY_ORIGIN, "warning", ("server", "cors", "allow_origins", index), message


def media_fetched(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Warn if vLLM fetches URLs that clients choose."""
    if config.request.media_urls == "allow":
        message = (
            "clients can make vLLM fetch addresses inside the cluster; write deny, "
            "or start vLLM with --allowed-media-domains and block its outgoing traffic"
        )
        yield codes.MEDIA_FETCHED, "warning", ("request", "media_urls"), message


EXPOSURE_RULES: Final = (trusted_anybody, endless_patience, any_origin, media_fetched)
