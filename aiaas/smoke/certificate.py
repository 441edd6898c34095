"""Read a server's certificate with full verification, even where the other checks accept any."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import msgspec

from aiaas.httpclient.mismatch import tls_fault
from aiaas.httpclient.target import HttpTarget
from aiaas.smoke.result import Verdict, judged
from aiaas.units import DAY

# Let's Encrypt renews a 90-day certificate with 30 days left, a one-day one with 8 hours; below both, renewal failed.
LEAST_DAYS: Final = 14.0
LEAST_SHARE: Final = 1 / 6

EXPECTED: Final = "a valid certificate for this host, renewed in time"
_SELF_SIGNED: Final = (
    "the ingress shows its own default certificate (the TLS secret is missing or names another host), or a private "
    "authority signed it (then use --ca FILE)"
)
_BY_REASON: Final = (
    ("expired", "it was not renewed: check the cert-manager Certificate and its challenge"),
    (
        "mismatch",
        "the certificate is for another host: check the host in the `tls` section of the ingress",
    ),
    ("not valid for", "the certificate is for another host: check the host in the `tls` section of the ingress"),
    ("self-signed", _SELF_SIGNED),
    ("self signed", _SELF_SIGNED),
    (
        "issuer",
        "the chain is incomplete (the intermediate is missing in tls.crt), or a private authority signed it (then use "
        "--ca FILE)",
    ),
)


class Certificate(msgspec.Struct, frozen=True):
    """A certificate's fields; times in POSIX seconds. `fault` says why it does not verify; the rest is then empty."""

    begins: float = 0.0
    ends: float = 0.0
    issuer: str = ""
    version: str = ""
    fault: str = ""


async def read_certificate(target: HttpTarget, context: ssl.SSLContext, timeout: float) -> Certificate:
    """The certificate of `target`, verified by `context`."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return Certificate(fault=error.verify_message)
    except ssl.SSLError as error:
        return Certificate(fault=tls_fault(error))
    except TimeoutError:
        return Certificate(fault=f"no connection within {timeout:g} s")
    except OSError as error:
        return Certificate(fault=error.strerror or str(error))
    try:
        shown = writer.get_extra_info("peercert")
        version = writer.get_extra_info("ssl_object").version()
        issuer = {name: value for part in shown["issuer"] for name, value in part}
        return Certificate(
            ssl.cert_time_to_seconds(shown["notBefore"]),
            ssl.cert_time_to_seconds(shown["notAfter"]),
            issuer.get("organizationName") or issuer.get("commonName", ""),
            version or "",
        )
    finally:
        writer.transport.abort()


def judge_certificate(found: Certificate, now: float) -> Verdict:
    """Check that the certificate verifies and has enough days left; `now` in POSIX seconds."""
    if found.fault:
        lower = found.fault.lower()
        hint = next(
            (hint for word, hint in _BY_REASON if word in lower),
            "the server does not speak TLS (then write http://), or only an outdated version",
        )
        return judged(False, EXPECTED, found.fault, hint)
    left = (found.ends - now) / DAY
    least = min(LEAST_DAYS, (found.ends - found.begins) / DAY * LEAST_SHARE)
    seen = f"{found.version}, issued by {found.issuer or 'an unnamed authority'}, {left:.0f} days left"
    hint = "it should have been renewed by now: check the cert-manager Certificate and its challenge"
    return judged(left >= least, f"{EXPECTED} ({least:.0f} days left or more)", seen, hint)
