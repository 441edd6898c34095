"""A URL, and the target that it names."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from aiaas.errors import EnvironmentFault, UsageError
from aiaas.httpclient.target import parse_target


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("http://h:80", ("http://h:80", "h", 80, "", False), id="plain"),
        pytest.param("h:8080", ("http://h:8080", "h", 8080, "", False), id="without a scheme"),
        pytest.param(
            "https://api.example.com/", ("https://api.example.com:443", "api.example.com", 443, "", True), id="TLS"
        ),
        pytest.param("http://h/v1/", ("http://h:80", "h", 80, "", False), id="the SDK's base URL"),
        pytest.param("http://h/team/v1", ("http://h:80/team", "h", 80, "/team", False), id="below a path"),
        pytest.param("http://[::1]:9", ("http://[::1]:9", "::1", 9, "", False), id="IPv6"),
    ],
)
def test_a_url_is_host_port_and_base(url: str, expected: tuple[object, ...]) -> None:
    """With or without /v1 at its end."""
    target = parse_target(url)
    assert (target.url, target.host, target.port, target.base, target.tls is not None) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("", "not a server URL", id="empty"),
        pytest.param("ftp://h", "not a server URL", id="another scheme"),
        pytest.param("http://", "not a server URL", id="no host"),
        pytest.param("http://h:99999", "is not a URL", id="port"),
        pytest.param("http://h/?a=1", "not a server URL", id="query"),
        pytest.param("http://me:sk-secret@h", "user or a password", id="password"),
        pytest.param("http://h/a b", "characters that are not allowed in a URL", id="space"),
        pytest.param("http://h\r\nX: y/", "", id="line break"),
    ],
)
def test_invalid_server_url_is_refused(url: str, message: str) -> None:
    """In one line, and without a secret in it."""
    with pytest.raises(UsageError) as refused:
        parse_target(url)
    assert message in str(refused.value)
    assert "sk-secret" not in str(refused.value)


def test_a_head_has_the_key_and_the_default_port_is_left_out() -> None:
    """As other clients write it."""
    head = parse_target("http://h/team").head("POST", "/v1/models", "sk-1")
    assert head.startswith(b"POST /team/v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\n")
    assert b"Host: [::1]:9\r\n" in parse_target("http://[::1]:9").head("GET", "/", None)
    assert b"Authorization" not in parse_target("h").head("GET", "/", None)


def test_certificates_are_verified_unless_told_otherwise() -> None:
    """With the system's authorities, or not at all."""
    strict, lax = parse_target("https://h").tls, parse_target("https://h", insecure=True).tls
    assert strict is not None
    assert lax is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)


def test_a_file_without_certificates_is_said(tmp_path: Path) -> None:
    """And a missing file too."""
    (tmp_path / "ca.pem").write_text("hello")
    for name, message in (("ca.pem", "does not contain certificates in PEM"), ("no.pem", "does not exist")):
        with pytest.raises(EnvironmentFault, match=message):
            parse_target("https://h", ca=tmp_path / name)


def test_a_target_does_not_show_its_context() -> None:
    """An operator understands its repr."""
    assert repr(parse_target("https://h")) == "HttpTarget(url='https://h:443', host='h', port=443, base='')"
