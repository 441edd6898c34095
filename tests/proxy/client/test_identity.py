"""aiaas.proxy.client.identity: the address that a request claims, and how far it is believed."""

from ipaddress import ip_network

import pytest
from aiohttp.streams import EMPTY_PAYLOAD

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.proxy.client.forwarded import hops
from aiaas.proxy.client.identity import client_address, is_trusted, presented_key, sane_request_id
from aiaas.proxy.client.incoming import HttpRequest

TRUSTED = tuple(ip_network(cidr) for cidr in ("10.0.0.0/8", "fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "1.1.1.1", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "9.9.9.9, 1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "9.9.9.9,1.1.1.1 , 10.2.2.2", "1.1.1.1"),
        ("10.0.0.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("10.0.0.1", "1.1.1.1, rubbish", "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1, rubbish, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "2001:DB8::0001", "2001:db8::1"),
        ("10.0.0.1", "::ffff:1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", 'fe80::1%"injected', "fe80::1"),
        ("::ffff:10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("::ffff:192.0.2.1", "1.1.1.1", "192.0.2.1"),
        ("fd00::1", "1.1.1.1", "1.1.1.1"),
        ("local", "1.1.1.1", "local"),
    ],
    ids=[
        "no proxy", "a liar", "proxy without header", "one proxy", "forged in front", "two proxies", "all trusted",
        "last hop is not an address", "hop before a proxy is not an address", "empty", "IPv6 in its usual form",
        "IPv4 in IPv6", "zone", "trusted IPv4 in IPv6", "untrusted IPv4 in IPv6", "trusted IPv6", "no address",
    ],
)  # fmt: skip
def test_client_is_the_nearest_address_not_a_trusted_proxy(peer: str, forwarded: str | None, address: str) -> None:
    """The client's own text in X-Forwarded-For stands to the left, where nobody looks."""
    named = hops((forwarded,) if forwarded is not None else (), ())
    assert client_address(peer, named, TRUSTED) == address


def test_nobody_is_trusted_by_default() -> None:
    """Not even this machine is trusted."""
    assert not is_trusted("127.0.0.1", ())
    assert client_address("127.0.0.1", ("1.1.1.1",), ()) == "127.0.0.1"


@pytest.mark.parametrize(
    ("offered", "sane"),
    [
        ("abc-123", True),
        ("A:b.c_d", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ('a"b', False),
        ("a\n", False),
        ("é", False),
        (None, False),
    ],
)
def test_a_request_id_is_short_and_plain(offered: str | None, sane: bool) -> None:
    """The id goes into a header and the log."""
    assert sane_request_id(offered) == (offered if sane else None)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "No API key was sent."),
        ({"Authorization": "sk-abc"}, "The header `Authorization` must be `Bearer KEY`."),
        ({"Authorization": "Basic abc"}, "The header `Authorization` must be `Bearer KEY`."),
        ({"Authorization": "Bearer "}, "The header `Authorization` must be `Bearer KEY`."),
    ],
    ids=["no header", "the key alone", "another scheme", "no key"],
)
def test_missing_key_is_answered_with_the_header_to_send(headers: dict[str, str], message: str) -> None:
    """A malformed header is reported as malformed, not as missing."""
    named = {name.lower(): value for name, value in headers.items()}
    with pytest.raises(ClientError) as caught:
        presented_key(HttpRequest("POST", paths.CHAT, named, EMPTY_PAYLOAD), paths.CHAT)
    assert (caught.value.status, caught.value.code) == (401, "missing_api_key")
    assert caught.value.message.startswith(message)
