"""aiaas.authorities: whose certificates a client trusts."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from aiaas.authorities import AuthoritiesError, AuthoritiesMissing, last_day, trusting
from tests.certificate import authority_until


def test_a_file_replaces_the_systems_authorities(tmp_path: Path) -> None:
    """Certificates are required and names checked either way."""
    file = tmp_path / "ca.pem"
    file.write_bytes(trustme.CA().cert_pem.bytes())
    for context in (trusting(file), trusting(None)):
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(trusting(file).get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("spoil", "words", "kind"),
    [
        (lambda file: None, "does not exist", AuthoritiesMissing),
        (lambda file: file.mkdir(), "cannot be read: Is a directory", AuthoritiesError),
        (lambda file: file.write_text(""), "does not contain certificates in PEM", AuthoritiesError),
        (lambda file: file.write_bytes(b"0\x82\x01"), "does not contain certificates in PEM", AuthoritiesError),
        (
            lambda file: file.write_bytes(trustme.CA().cert_pem.bytes()[:300] + b"\n-----END CERTIFICATE-----\n"),
            "does not contain certificates in PEM",
            AuthoritiesError,
        ),
    ],
    ids=["missing", "a folder", "empty", "DER", "cut off"],
)
def test_an_unusable_file_is_named(
    spoil: Callable[[Path], object], words: str, kind: type[AuthoritiesError], tmp_path: Path
) -> None:
    """In one line."""
    file = tmp_path / "ca.pem"
    spoil(file)
    with pytest.raises(AuthoritiesError) as error:
        trusting(file)
    assert (type(error.value), str(error.value)) == (kind, f"{file} {words}")


def test_the_last_authority_counts(tmp_path: Path) -> None:
    """During a rotation the old one is still in the file."""
    file = tmp_path / "ca.pem"
    old, new = datetime(2021, 2, 3, tzinfo=UTC), datetime(2999, 2, 3, tzinfo=UTC)
    pems = [authority_until(ends, tmp_path) for ends in (old, new)]
    file.write_bytes(pems[0])
    assert last_day(trusting(file)) == old.timestamp()
    file.write_bytes(b"".join(pems))
    assert last_day(trusting(file)) == new.timestamp()
    assert last_day(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) is None
