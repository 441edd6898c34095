"""The certificate that a server shows: read with full verification, whatever the other checks accept."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import msgspec

from aiaas.httpclient.target import HttpTarget
from aiaas.smoke.result import Verdict, judged

DAY: Final = 86400.0
# Let's Encrypt's 90 days are renewed with 30 left, those of a day with 8 hours: what is below both was not renewed.
LEAST_DAYS: Final = 14.0
LEAST_SHARE: Final = 1 / 6

EXPECTED: Final = "a certificate that verifies, for this host, and is renewed in time"
_SELF_SIGNED: Final = (
    "the ingress shows its own default certificate (the TLS secret is missing or names another host), or a private "
    "authority signed it: then --ca FILE"
)
_BY_REASON: Final = (
    ("expired", "it was not renewed: look at the cert-manager Certificate, and whether its challenge gets through"),
    (
        "mismatch",
        "the certificate is another host's: the `tls` section of the ingress names another host, or its default",
    ),
    ("not valid for", "the certificate is another host's: the `tls` section of the ingress names another host"),
    ("self-signed", _SELF_SIGNED),
    ("self signed", _SELF_SIGNED),
    (
        "issuer",
        "the chain is incomplete (the intermediate is missing in tls.crt), or a private authority: then --ca FILE",
    ),
)


class Certificate(msgspec.Struct, frozen=True):
    """What a certificate says of itself; POSIX seconds. `fault` is why it does not verify, the rest is then empty."""

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
        return Certificate(fault=f"no TLS came about: {error.reason or error}")
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
    """Whether it verifies and has days left; `now` in POSIX seconds."""
    if found.fault:
        lower = found.fault.lower()
        hint = next(
            (hint for word, hint in _BY_REASON if word in lower),
            "what listens there speaks no TLS (then write http://), or none of today",
        )
        return judged(False, EXPECTED, found.fault, hint)
    left = (found.ends - now) / DAY
    least = min(LEAST_DAYS, (found.ends - found.begins) / DAY * LEAST_SHARE)
    seen = f"{found.version}, of {found.issuer or 'nobody named'}, {left:.0f} days left"
    hint = "it should have been renewed by now: look at the cert-manager Certificate and its challenge"
    return judged(left >= least, f"{EXPECTED} ({least:.0f} days left or more)", seen, hint)
