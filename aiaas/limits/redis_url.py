"""The address of the shared store, taken apart once and for all who need it: the checker, the compiler, the store.

    redis://[[USER]:PASSWORD@]HOST[:6379][/DATABASE]      rediss:// the same over TLS; valkey(s):// the same as redis(s)://
    ?ssl_ca_certs=FILE    trust these authorities instead of the system's
    ?ssl_certfile=FILE&ssl_keyfile=FILE    show this certificate

User and password are percent-decoded, as in every URL. What stands before the last `@` is theirs, so that a password
from the environment may hold `/`, `#` or `@` as it is; only a `%` in it has to be written `%25`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote

PORT: Final = 6379

_FORM: Final = "write redis://host:6379/0, or rediss:// for TLS"
_TLS: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_REST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?(?:/([0-9]{0,5}))?(?:\?(.*))?")
_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where the shared store is, and how to get in. Files are None where the system's authorities and no certificate
    of our own are meant."""

    host: str
    port: int
    database: int
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def url(self) -> str:
        """In one spelling and without the password: for the Plan, the log, the digest."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{host}:{self.port}/{self.database}"


def parse_redis_url(text: str) -> RedisUrl:
    """Take the address apart. Raises ValueError with what is wrong and what is allowed; never repeats a password."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _TLS:
        raise ValueError(f"is not the address of a store; {_FORM}")
    user_info, at, place = rest.rpartition("@")
    username, colon, password = user_info.partition(":")
    if at and not colon:
        raise ValueError("has a user without a password; write redis://USER:${NAME}@host, or redis://:${NAME}@host")
    match = _REST.fullmatch(place)
    if match is None or not 0 < int(match[2] or PORT) < 65536:
        raise ValueError(f"has no usable host, port or database; {_FORM}")
    tls = _TLS[scheme]
    return RedisUrl(
        host=match[1].strip("[]"),
        port=int(match[2] or PORT),
        database=int(match[3] or 0),
        tls=tls,
        username=unquote(username) or None,
        password=unquote(password) or None,
        **_files(match[4] or "", tls),
    )


def _files(query: str, tls: bool) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _FILES or not value:
            raise ValueError(f"has a query that is not known; known are {', '.join(_FILES)}, each with a file")
        files[_FILES[name]] = value
    if files and not tls:
        raise ValueError("names files for TLS but does not use it; write rediss://")
    if ("cert_file" in files) != ("key_file" in files):
        raise ValueError("needs ssl_certfile and ssl_keyfile together")
    return files
