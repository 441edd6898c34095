"""The first bytes of a TLS connection, before any memory is spent on it. Pure.

A TLS connection takes 50 KiB from the moment at which its handshake begins. And the first nine bytes alone make OpenSSL
reserve the announced length: a ClientHello of 128 KiB costs 170 KiB more (measured: 1,000 of them 230 MiB). So begin
the handshake only when the client's first record has arrived whole, and refuse a longer one than clients send.

    byte 0     type of the record: 22, handshake        RFC 8446 section 5.1
    bytes 1-2  0x03 and a minor version
    bytes 3-4  length of the record, at most 2^14
    byte 5     type of the message: 1, ClientHello      section 4
    bytes 6-8  length of the message
"""

from __future__ import annotations

from typing import Final

# Bytes that contain both lengths.
PREFIX: Final = 9
# The longest record, and the longest ClientHello that we accept; one with a post-quantum key share is 1,800 bytes.
MOST: Final = 2**14


class NotTls(Exception):
    """These bytes do not begin a TLS connection."""


def bytes_needed(begun: bytes) -> int:
    """How many bytes the handshake needs to begin, read from the bytes that have arrived. Raises NotTls."""
    if not (b"\x16\x03"[: len(begun)] == begun[:2]):
        raise NotTls
    if len(begun) < PREFIX:
        return PREFIX
    record, message = int.from_bytes(begun[3:5]), int.from_bytes(begun[6:9])
    if begun[5] != 1 or record > MOST or message > MOST:
        raise NotTls
    return max(5 + record, PREFIX)
