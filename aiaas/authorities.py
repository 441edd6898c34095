"""The certificate authorities that a client trusts: the system's, or those of a file in their place.

Every TLS connection that aiaas opens gets its context here. Names are checked, and a certificate is required.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from aiaas.errors import AiaasError

# `verify_code` of a certificate whose authority is not trusted. X509_V_ERR_: DEPTH_ZERO_SELF_SIGNED_CERT,
# SELF_SIGNED_CERT_IN_CHAIN, UNABLE_TO_GET_ISSUER_CERT_LOCALLY, UNABLE_TO_VERIFY_LEAF_SIGNATURE (OpenSSL, x509_vfy.h).
UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})


class AuthoritiesError(AiaasError):
    """The file cannot be used; the text is one line with the file and the reason."""


class AuthoritiesMissing(AuthoritiesError):
    """The file does not exist."""


def trusting(file: Path | None) -> ssl.SSLContext:
    """A context that trusts the authorities in `file` (PEM) alone; None: the system's, which takes 20 ms to read.

    Raises AuthoritiesError if the file cannot be used, and OSError if the system's authorities cannot be read.
    """
    if file is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=file)
    except FileNotFoundError as error:
        raise AuthoritiesMissing(f"{file} does not exist") from error
    except ssl.SSLError as error:
        raise AuthoritiesError(f"{file} does not contain certificates in PEM") from error
    except OSError as error:
        raise AuthoritiesError(f"{file} cannot be read: {error.strerror}") from error


def last_day(context: ssl.SSLContext) -> float | None:
    """When the last authority of a context expires, in POSIX seconds; None without one that says so.

    The last one: during a rotation a file holds the old authority and the new one.
    """
    ends = [ssl.cert_time_to_seconds(str(certificate["notAfter"])) for certificate in context.get_ca_certs()]
    return float(max(ends)) if ends else None
