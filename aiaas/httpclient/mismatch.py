"""One side speaks TLS and the other plain HTTP: name that as the cause.

we speak   the server speaks   seen as
TLS        plain HTTP          a handshake that fails with one of OpenSSL's words for "these bytes are not TLS"
plain      TLS                 an alert, a page of status 400 or a closed connection: a handshake shows the cause
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from aiaas.authorities import UNKNOWN_AUTHORITY

WRITE_HTTP: Final = "the server speaks plain HTTP; write http:// instead of https://"
WRITE_HTTPS: Final = "the server speaks TLS; write https:// instead of http://"
# The reasons that versions of OpenSSL give for an answer such as "HTTP/1.1 400 Bad Request".
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})


def tls_fault(error: ssl.SSLError) -> str:
    """Why a handshake failed, for a log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        unknown = "signed by an unknown authority, " if error.verify_code in UNKNOWN_AUTHORITY else ""
        return f"its certificate does not verify: {unknown}{error.verify_message}"
    if error.reason in _NOT_TLS:
        return WRITE_HTTP
    return f"TLS failed: {error.reason or error}"


async def speaks_tls(host: str, port: int, timeout: float) -> bool:
    """Whether a TLS server listens there, whatever its certificate. Never raises."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, UnicodeError):  # TimeoutError and ssl.SSLError among them
        return False
    writer.transport.abort()
    return True
