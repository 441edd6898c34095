"""aiaas.proxy.client.request_target: request targets as RFC 9112 section 3.2 writes them."""

import pytest

from aiaas.proxy.client.request_target import is_authority, is_valid, path_of


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models?x=/y?z", "/v1/models"),
        ("//v1/models", "//v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/models//?x=/", "/v1/models"),
        ("/v1/models/m/", "/v1/models/m/"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/health/", "/health"),
        ("/metrics/", "/metrics"),
        ("/v1/", "/v1/"),
        ("//", "//"),
        ("/", "/"),
        ("http://host/ready/", "/ready"),
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
    """Without query and authority; slashes at the end of a served path are dropped. Nothing else is normalised."""
    assert path_of(target) == path


VALID = [
    "x", "gateway.example", "gateway.example.", "my_gateway", "a-b", "127.0.0.1", "127.0.0.1:8080", "x:80", "x:", "x:0",
    "x:65535", "x:00080", "[::1]", "[::1]:8080", "[::ffff:192.0.2.1]", "[2001:DB8::1]:", "[v1.a:b]", "%41.example",
    "x%2Cy", "999.0.0.1", "a~b!c$d&e'f(g)h*i+j;k=l", "x" * 255,
]  # fmt: skip
INVALID = [
    "", ":", ":80", "x, y", "x,y", "x y", " x", "x ", "x\ty", "a@x", "a:b@x", "@x", "x/y", "x/", "x?y", "x#y", "http://x",
    "//x", "x:abc", "x:8o", "x:-1", "x:+1", "x: 80", "x:80:80", "x:65536", "x:99999", "x:" + "9" * 30, "x:8\u0660",
    "b\u00fccher.example", "x\udcff", "x\x00", "x\x01", "x\x7f", "x\n", "x\\y", 'x"y', "x<y", "x^y", "x|y", "{x}",
    "%", "%4", "%zz", "x%", "[::1", "::1", "::1]", "[]", "[::1]x", "[::1]:x", "[::g]", "[1:2]", "[:::]", "[1.2.3.4]",
    "[x]", "[::1%25eth0]", "[::1%eth0]", "[fe80::1%251]:80", "[v.a]", "[vg.a]", "[v1.]", "x[::1]", "[[::1]]",
]  # fmt: skip


@pytest.mark.parametrize("text", [pytest.param(text, id=ascii(text)[:40]) for text in VALID])
def test_a_valid_host_passes(text: str) -> None:
    """As RFC 3986 section 3.2.2 and RFC 9110 section 7.2 define it."""
    assert is_authority(text)
    assert is_valid(f"http://{text}/v1/models?x", "GET")


@pytest.mark.parametrize("text", [pytest.param(text, id=ascii(text)[:40]) for text in INVALID])
def test_an_invalid_host_does_not(text: str) -> None:
    """Alone, or in a target in absolute form."""
    assert not is_authority(text)
    if not set("/?#") & set(text):
        assert not is_valid(f"https://{text}/v1/models?x", "GET")
        assert not is_valid(f"https://{text}", "GET")


@pytest.mark.parametrize(
    ("method", "target", "valid"),
    [
        ("CONNECT", "x:80", True), ("CONNECT", "[::1]:80", True), ("CONNECT", "x", False), ("CONNECT", "x:", False),
        ("CONNECT", "[::1]", False), ("CONNECT", "a@x:80", False), ("CONNECT", "10.0.0.1", False),
        ("OPTIONS", "*", True), ("GET", "ftp://a@x/y", True), ("GET", "http://x#y", True),
        ("GET", "http://x?y@z", True), ("GET", "http://a@x?y", False), ("GET", "HTTP://a@x", False),
    ],
)  # fmt: skip
def test_a_tunnel_needs_a_port_and_other_forms_need_a_valid_host(method: str, target: str, valid: bool) -> None:
    """RFC 9110 section 9.3.6. Other schemes are not served, so their hosts do not matter."""
    assert is_valid(target, method) is valid
