"""aiaas.proxy.client.forwarded: the headers in which proxies write where a request came from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.client.forwarded import MAX_HOPS, hop_address, hops, peer_address, plain_address


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.4:80", "[::1]", "host", "1.2.3.4/8"])
def test_plain_address_rejects_anything_else(text: str) -> None:
    """Other values are not guessed at."""
    assert plain_address(text) is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:51234", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ('"203.0.113.7"', "203.0.113.7"),
        ('"203.0.113.7:80"', "203.0.113.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ('"[2001:db8::7]:443"', "2001:db8::7"),
        ("[fe80::1%eth0]:443", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1"),
        ("unknown", None),
        ('"_hidden"', None),
        ("-", None),
        ("", None),
        ("203.0.113.7:", None),
        ("203.0.113.7:123456", None),
        ("203.0.113.7:http", None),
        ("203.0.113.777", None),
        ("[203.0.113.7", None),
        ("client.example.com", None),
        ("client.example.com:80", None),
    ],
)
def test_hop_address_is_found_in_every_usual_form(text: str, address: str | None) -> None:
    """With a port, in brackets, in quotes, with spaces; a name or a word is not an address."""
    assert hop_address(text) == address


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["for=192.0.2.60"], ("192.0.2.60",)),
        (["For=192.0.2.60;proto=http;by=203.0.113.43"], ("192.0.2.60",)),
        (["proto=http; for=192.0.2.60"], ("192.0.2.60",)),
        (['for="[2001:db8:cafe::17]:4711"'], ("2001:db8:cafe::17",)),
        (['for="192.0.2.43:47011", for=198.51.100.17'], ("198.51.100.17", "192.0.2.43")),
        (["for=192.0.2.43", "for=198.51.100.17"], ("198.51.100.17", "192.0.2.43")),
        (["for=unknown"], (None,)),
        (['for="_gazonk"'], (None,)),
        (["by=203.0.113.43"], (None,)),
        (["notfor=1.1.1.1"], (None,)),
        (['for="9.9.9.9, for=198.51.100.17'], ("198.51.100.17", None)),
        (['for="9.9.9.9, for="[2001:db8::1]:443"'], ("2001:db8::1", None)),
    ],
    ids=[
        "plain", "with others", "not first", "IPv6 and port", "two hops", "two lines", "unknown", "obfuscated",
        "no for", "another word", "a quote that is left open", "and the proxy's own quotes",
    ],
)  # fmt: skip
def test_forwarded_is_read_where_it_is_the_only_header(lines: list[str], found: tuple[str | None, ...]) -> None:
    """RFC 7239, the nearest hop first."""
    assert hops((), lines) == found
    assert hops(("1.1.1.1",), lines) == ("1.1.1.1",)


@given(st.lists(st.text(max_size=60), max_size=5), st.sampled_from(["203.0.113.9", '"[2001:db8::9]:8"']))
def test_address_from_the_nearest_proxy_always_counts(forged: list[str], seen: str) -> None:
    """Whatever a client wrote in front of that address."""
    text = ", ".join([*forged, seen])
    assert hops((text,), ())[0] == hop_address(seen)
    assert hops((), (", ".join([*forged, f"for={seen}"]),))[0] == hop_address(seen)


def test_hops_are_bounded() -> None:
    """A header of 10,000 commas costs no more than one of MAX_HOPS."""
    assert len(hops((",".join(["1.1.1.1"] * 10_000),), ())) == MAX_HOPS


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("203.0.113.7", 51234), "203.0.113.7"),
        (("::ffff:203.0.113.7", 51234, 0, 0), "203.0.113.7"),
        (("2001:db8::7", 51234, 0, 0), "2001:db8::7"),
        (("fe80::1%eth0", 51234, 0, 2), "fe80::1"),
    ],
)
def test_peer_address(name: tuple[str | int, ...], address: str) -> None:
    """A client has one name, whichever kind of socket it came by."""
    assert peer_address(name) == address
