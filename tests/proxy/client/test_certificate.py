"""aiaas.proxy.client.certificate: when a certificate is valid, compared with the library that issued it."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.client.certificate import SOON, Validity, validity

DAY = 86400.0


@pytest.mark.parametrize(
    "ends",
    [datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)],
    ids=["two digits of the year", "the last with two", "four digits"],
)
@pytest.mark.parametrize("kind", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_both_dates_are_read(ends: datetime, kind: trustme.KeyType) -> None:
    """As an X.509 library reads them; of a chain the first certificate counts."""
    authority = trustme.CA(key_type=kind)
    made = authority.issue_cert("localhost", key_type=kind, not_after=ends).cert_chain_pems[0].bytes()
    known = load_pem_x509_certificate(made)
    text = "Bag Attributes\n" + made.decode() + authority.cert_pem.bytes().decode()
    assert validity(text) == Validity(known.not_valid_before_utc.timestamp(), ends.timestamp())


@pytest.mark.parametrize(
    "text",
    ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"],
    ids=["empty", "no PEM", "cut off", "no base64"],
)
def test_invalid_certificate_is_a_value_error(text: str) -> None:
    """ValueError is the only exception."""
    with pytest.raises(ValueError, match="contain"):
        validity(text)


WHOLE = ssl.PEM_cert_to_DER_cert(trustme.CA().cert_pem.bytes().decode())


@given(st.binary(max_size=200) | st.integers(0, len(WHOLE) - 1).map(lambda size: WHOLE[:size]))
def test_whatever_stands_in_it_is_read_or_refused(der: bytes) -> None:
    """A cut or foreign certificate is a ValueError."""
    with pytest.raises(ValueError, match="contain"):
        validity(ssl.DER_cert_to_PEM_cert(der))


@pytest.mark.parametrize(
    ("left", "lifetime", "said"),
    [
        (90 * DAY, 90 * DAY, None),
        (SOON + 1, 90 * DAY, None),
        (SOON - 1, 90 * DAY, "expires on"),
        (2 * DAY, 6 * DAY, None),
        (1 * DAY, 6 * DAY, "expires on"),
        (0, 90 * DAY, "expired on"),
        (91 * DAY, 90 * DAY, "is not valid before"),
    ],
    ids=["new", "renewed in time", "late", "short and fresh", "short and late", "over", "too early"],
)
def test_a_certificate_that_ends_soon_is_told(left: float, lifetime: float, said: str | None) -> None:
    """The warning names the day; a certificate with a short life does not warn all its days."""
    now = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
    warning = Validity(now + left - lifetime, now + left).warning(now)
    assert (warning is None) == (said is None)
    if warning is not None and said is not None:
        day = now + left - (lifetime if "before" in said else 0)
        assert said in warning
        assert (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=day)).strftime("%Y-%m-%d") in warning
