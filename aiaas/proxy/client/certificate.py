"""When a certificate is valid, read from its PEM. Pure.

The standard library reads these dates only from a peer's certificate, and an X.509 library for two dates is too much.
The dates have a fixed place in the DER (RFC 5280 section 4.1):

    Certificate { TBSCertificate { [0] version (maybe), serial, algorithm, issuer, validity { notBefore, notAfter } ...
"""

from __future__ import annotations

import binascii
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_DAY: Final = 86400.0
# Renewal is usually due a month before the end (certbot) or a third of the lifetime (cert-manager). A certificate this
# close to its end is not being renewed: two weeks, or a quarter of a short life.
SOON: Final = 14 * _DAY
SOON_PART: Final = 4


@dataclass(frozen=True, slots=True)
class Validity:
    """POSIX seconds: from when and until when."""

    begins: float
    ends: float

    def warning(self, now: float) -> str | None:
        """The certificate's fault at `now`, as the end of a sentence that begins with the file; None if it is valid."""
        if now >= self.ends:
            return f"expired on {_shown(self.ends)}; clients refuse it"
        if now < self.begins:
            return f"is not valid before {_shown(self.begins)}; clients refuse it"
        if self.ends - now < min(SOON, (self.ends - self.begins) / SOON_PART):
            return f"expires on {_shown(self.ends)}; renew it"
        return None


def validity(pem: str) -> Validity:
    """Read the first certificate in `pem`, which is the server's own. Raises ValueError if that fails."""
    begin = pem.find(_BEGIN)
    end = pem.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("does not contain a PEM certificate")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_END)])
        return _from_der(der)
    except (binascii.Error, ValueError, IndexError) as error:
        raise ValueError("contains a certificate that cannot be read") from error


def _from_der(der: bytes) -> Validity:
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, _, behind = _element(der, at)
    if tag == _VERSION:
        at = behind
    for _ in ("serial", "algorithm", "issuer"):
        _, _, at = _element(der, at)
    tag, at, _ = _element(der, at)
    if tag != _SEQUENCE:
        raise ValueError("no validity")
    tag, start, behind = _element(der, at)
    begins = _time(tag, der[start:behind])
    tag, start, end = _element(der, behind)
    return Validity(begins, _time(tag, der[start:end]))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at `at`, and where its content begins and ends (X.690 section 8.1)."""
    length = der[at + 1]
    start = at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[start : start + size], "big")
        start += size
    if start + length > len(der):
        raise ValueError("cut off")
    return der[at], start, start + length


def _time(tag: int, text: bytes) -> float:
    """RFC 5280 section 4.1.2.5: two digits of the year up to 2049 (50 is 1950), four after that; always in UTC."""
    written = text.decode("ascii")
    if tag == _UTC_TIME:
        written = ("19" if written >= "5" else "20") + written
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(written, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
