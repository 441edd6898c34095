"""aiaas.proxy.client.client_hello: the bytes that must be there before a handshake begins."""

from __future__ import annotations

import ssl

import pytest

from aiaas.proxy.client.client_hello import MOST, NotTls, bytes_needed


def hello() -> bytes:
    """The first bytes that OpenSSL's client sends."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def header(record: int, message: int, *, kind: int = 1) -> bytes:
    """The first nine bytes of a TLS record with the given lengths of record and message."""
    return b"\x16\x03\x01" + record.to_bytes(2) + bytes([kind]) + message.to_bytes(3)


def test_a_hello_is_needed_whole() -> None:
    """First the header is needed, then the whole hello, however much of it is there."""
    whole = hello()
    assert {bytes_needed(whole[:length]) for length in range(1, 9)} == {9}
    assert {bytes_needed(whole[:length]) for length in range(9, len(whole) + 1)} == {len(whole)}
    assert bytes_needed(whole + b"what follows") == len(whole)


@pytest.mark.parametrize(
    "begun",
    [
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x02",
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00",
        header(100, 96, kind=2),
        header(MOST + 1, 100),
        header(100, MOST + 1),
    ],
    ids=["one byte", "HTTP", "no version of TLS", "SSLv2", "another message", "a long record", "a long message"],
)
def test_bytes_of_no_client_are_refused(begun: bytes) -> None:
    """A ClientHello of 128 KiB has OpenSSL reserve that much with its ninth byte."""
    with pytest.raises(NotTls):
        bytes_needed(begun)


def test_a_hello_in_several_records_begins_with_the_first() -> None:
    """Some clients split theirs; OpenSSL puts it together, and what it reserves is bounded."""
    assert bytes_needed(header(40, MOST)) == 45
    assert bytes_needed(header(1, MOST)) == 9
