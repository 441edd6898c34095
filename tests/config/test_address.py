"""A backend's URL or DNS name, taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.config.address import Address, is_address, parse_dns, parse_url


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("http://vllm:8000", Address("vllm", 8000, False, "", "vllm:8000"), id="name and port"),
        pytest.param("https://vllm", Address("vllm", 443, True, "", "vllm"), id="https without a port"),
        pytest.param("HTTP://VLLM:80/", Address("vllm", 80, False, "", "vllm"), id="the scheme's own port goes"),
        pytest.param(
            "http://[::1]:8000/a/b/", Address("::1", 8000, False, "/a/b", "[::1]:8000"), id="IPv6 and base path"
        ),
        pytest.param("http://10.0.0.1", Address("10.0.0.1", 80, False, "", "10.0.0.1"), id="IPv4"),
        pytest.param("http://a_b.c-d.svc:1", Address("a_b.c-d.svc", 1, False, "", "a_b.c-d.svc:1"), id="cluster name"),
    ],
)
def test_a_url_is_taken_apart(text: str, address: Address) -> None:
    """Host, port, scheme, base path and Host header come out as they are needed on the wire."""
    assert parse_url(text) == address
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    "text", ["http://u:hunter2@h", "http://h/v1", "http://h/a\r\nX: y", "http://h/a b", "http://h\t"]
)
def test_url_that_would_break_a_request_is_refused(text: str) -> None:
    """Credentials, a second /v1 and anything that could split a header are a ValueError that repeats no password."""
    with pytest.raises(ValueError) as caught:
        parse_url(text)
    assert "hunter2" not in str(caught.value)


@given(st.text(alphabet="htps:/[]@.?#%1va \r\n\\", max_size=30) | st.text(max_size=20))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    """No URL raises anything else, and what is accepted cannot break out of a request line."""
    try:
        address = parse_url("http://" + text)
    except ValueError:
        return
    assert not set(address.authority + address.base_path) & set(" \r\n\t")
    assert 1 <= address.port <= 65535


@pytest.mark.parametrize(
    ("text", "host", "authority"),
    [
        pytest.param("vllm.system:8000", "vllm.system", "vllm.system:8000", id="a name"),
        pytest.param("vllm.system.svc.cluster.local.:8000", "vllm.system.svc.cluster.local.",
                     "vllm.system.svc.cluster.local:8000", id="no search domains"),
        pytest.param("localhost:80", "localhost", "localhost", id="the port of plain HTTP"),
        pytest.param("1a.example:8000", "1a.example", "1a.example:8000", id="digits first"),
    ],
)  # fmt: skip
def test_a_dns_name_is_taken_apart(text: str, host: str, authority: str) -> None:
    """The address to connect to, and the value of the Host header."""
    address = parse_dns(text)
    assert (address.host, address.authority, address.tls, address.base_path) == (host, authority, False, "")


@pytest.mark.parametrize(
    "text",
    ["", "vllm", "vllm:", ":8000", "http://vllm:8000", "vllm:8000/v1", "10.0.0.1:8000", "[::1]:8000", "u:p@vllm:8000",
     "vllm:0", "vllm:65536", "a b:8000", "vl\u00e4m:8000", "-:8000", "a..b:8000", "vllm:\u0663"],
)  # fmt: skip
def test_value_other_than_name_and_port_is_refused(text: str) -> None:
    """Addresses belong into `urls`; a scheme or a path has no place here."""
    with pytest.raises(ValueError):
        parse_dns(text)


@pytest.mark.parametrize(
    ("host", "yes"),
    [("10.0.0.1", True), ("::1", True), ("localhost", False), ("vllm", False), ("10.0.0", False)],
)
def test_is_address(host: str, yes: bool) -> None:
    """Only hosts that need no look-up."""
    assert is_address(host) == yes
