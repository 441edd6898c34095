"""The certificate: read from real sockets, judged by its days."""

from __future__ import annotations

import ssl

import pytest

from aiaas.httpclient.target import parse_target
from aiaas.smoke.certificate import DAY, Certificate, judge_certificate, read_certificate
from tests.fakes.vllm import FakeVllm
from tests.loadtest.conftest import Secure

NOW = 1_800_000_000.0


def lasting(days: float, left: float) -> Certificate:
    """One made for a number of days, with a number of days left."""
    return Certificate(NOW - (days - left) * DAY, NOW + left * DAY, "Let's Encrypt", "TLSv1.3")


@pytest.mark.parametrize(
    ("found", "held", "seen", "hint"),
    [
        pytest.param(lasting(90, 60), True, "TLSv1.3, issued by Let's Encrypt, 60 days left", "", id="fresh"),
        pytest.param(lasting(90, 15), True, "15 days left", "", id="renewed late"),
        pytest.param(lasting(90, 10), False, "10 days left", "should have been renewed", id="not renewed"),
        pytest.param(lasting(1, 0.4), True, "0 days left", "", id="of a day"),
        pytest.param(Certificate(fault="certificate has expired"), False, "expired", "was not renewed", id="expired"),
        pytest.param(
            Certificate(fault="Hostname mismatch, certificate is not valid for 'h'."),
            False,
            "mismatch",
            "for another host",
            id="another host",
        ),
        pytest.param(
            Certificate(fault="unable to get local issuer certificate"), False, "issuer", "chain", id="incomplete chain"
        ),
        pytest.param(Certificate(fault="self-signed certificate"), False, "self-signed", "default", id="self-signed"),
        pytest.param(Certificate(fault="WRONG_VERSION_NUMBER"), False, "WRONG", "does not speak TLS", id="no TLS"),
    ],
)
def test_a_certificate_is_judged(found: Certificate, held: bool, seen: str, hint: str) -> None:
    """The message and its usual cause."""
    verdict = judge_certificate(found, NOW)
    assert verdict.held is held
    assert seen in verdict.seen
    assert hint in verdict.hint


async def test_a_trusted_certificate_is_read(secure: Secure) -> None:
    """Its days, its issuer, the version of TLS."""
    target = parse_target(secure.url, ca=secure.certificate)
    assert target.tls is not None
    found = await read_certificate(target, target.tls, 5)
    assert (found.fault, found.issuer, round((found.ends - found.begins) / DAY)) == ("", "test", 2)
    assert found.version.startswith("TLSv1.")


async def test_one_that_does_not_verify_is_a_fault(secure: Secure) -> None:
    """The message is OpenSSL's own."""
    found = await read_certificate(parse_target(secure.url), ssl.create_default_context(), 5)
    assert "self-signed certificate" in found.fault


async def test_one_for_another_host_is_a_fault(secure: Secure) -> None:
    """A certificate that is trusted, but for 127.0.0.1 and not for this name."""
    target = parse_target(secure.url.replace("127.0.0.1", "localhost"), ca=secure.certificate)
    assert target.tls is not None
    found = await read_certificate(target, target.tls, 5)
    assert "for another host" in judge_certificate(found, NOW).hint


async def test_a_port_without_tls_is_a_fault(fake: FakeVllm) -> None:
    """And so is a port where nobody listens, or that is silent."""
    target = parse_target(fake.url.replace("http:", "https:"))
    assert (await read_certificate(target, ssl.create_default_context(), 0.2)).fault == "no connection within 0.2 s"
    await fake.down()
    assert "refused" in (await read_certificate(target, ssl.create_default_context(), 5)).fault.lower()
