"""Parse the address of the shared store, for the checker, the compiler and the store.

    redis://[[USER]:PASSWORD@]HOST[:6379][/DATABASE]      rediss:// the same over TLS; valkey(s):// the same as redis(s)://
    redis+sentinel://[...@]HOST[:26379][,HOST...]/NAME[/DATABASE]    the primary that these sentinels call NAME
    redis+cluster://[...@]HOST[:6379][,HOST...]           some nodes of a cluster, which name the others
    ?ssl_ca_certs=FILE    trust these authorities instead of the system's
    ?ssl_certfile=FILE&ssl_keyfile=FILE    show this certificate
    ?sentinel_username=USER&sentinel_password=PASSWORD    how to get into the sentinels

User and password are percent-decoded, as in every URL. They end at the last `@`, so that a password
from the environment may hold `/`, `#` or `@` as it is; only a `%` in it has to be written `%25`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

StoreKind = Literal["server", "sentinel", "cluster"]

_FORMS: Final[dict[StoreKind, str]] = {
    "server": "write redis://host:6379/0, or rediss:// for TLS",
    "sentinel": "write redis+sentinel://host:26379,host:26379/NAME, or rediss+sentinel:// for TLS",
    "cluster": "write redis+cluster://host:6379,host:6379, or rediss+cluster:// for TLS",
}
_SCHEME: Final = re.compile(r"(?:redis|valkey)(s?)(?:\+(sentinel|cluster))?")
_KINDS: Final[dict[str, StoreKind]] = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_REST: Final = re.compile(r"([^/?]*)(?:/([^/?]*))?(?:/([^/?]*))?(?:\?(.*))?")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
_SENTINEL: Final = {"sentinel_username": "sentinel_username", "sentinel_password": "sentinel_password"}


class StorePlace(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The address of the shared store, and how to log in. Files are None for the system's authorities, and where the
    client does not show a certificate.

    places   the server; or sentinels, or nodes of a cluster, of which any one that answers is enough
    service  what the sentinels call the primary; "" for other kinds
    """

    places: tuple[StorePlace, ...]
    database: int
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    kind: StoreKind = "server"
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The address in one spelling and without a password: for the Plan, the log, the digest."""
        kind = "" if self.kind == "server" else f"+{self.kind}"
        path = {"server": f"/{self.database}", "sentinel": f"/{self.service}/{self.database}", "cluster": ""}[self.kind]
        return f"redis{'s' if self.tls else ''}{kind}://{','.join(map(str, self.places))}{path}"


def parse_redis_url(text: str) -> RedisUrl:
    """Parse the address. Raises ValueError, which says what is wrong and allowed, and never repeats a password."""
    name, separator, rest = text.partition("://")
    scheme = _SCHEME.fullmatch(name)
    if not separator or scheme is None:
        raise ValueError(f"is not the address of a store; {_FORMS['server']}")
    kind, tls = _KINDS[scheme[2] or ""], bool(scheme[1])
    user_info, at, address = rest.rpartition("@")
    username, colon, password = user_info.partition(":")
    if at and not colon:
        raise ValueError("has a user without a password; write redis://USER:${NAME}@host, or redis://:${NAME}@host")
    match = _REST.fullmatch(address)
    places = None if match is None else _places(match[1], kind)
    if match is None or places is None:
        raise ValueError(f"has no usable host, port or database; {_FORMS[kind]}")
    service, database = (match[2] or "", match[3]) if kind == "sentinel" else ("", match[2])
    if kind == "sentinel" and not _NAME.fullmatch(service):
        raise ValueError(f"lacks the name of the primary; {_FORMS[kind]}")
    if not re.fullmatch("[0-9]{0,5}", database or "") or (kind != "sentinel" and match[3] is not None):
        raise ValueError(f"has no usable host, port or database; {_FORMS[kind]}")
    if kind == "cluster" and int(database or 0):
        raise ValueError("names a database, and a cluster has only the first; leave it out")
    return RedisUrl(
        places=places,
        database=int(database or 0),
        tls=tls,
        username=unquote(username) or None,
        password=unquote(password) or None,
        kind=kind,
        service=service,
        **_options(match[4] or "", kind, tls),
    )


def _places(text: str, kind: StoreKind) -> tuple[StorePlace, ...] | None:
    """The hosts; None where a host is invalid, or where there are several and the kind allows only one."""
    matches = [_HOST.fullmatch(part) for part in text.split(",")]
    usual = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    places = tuple(StorePlace(match[1].strip("[]"), int(match[2] or usual)) for match in matches if match is not None)
    if len(places) < len(matches) or (kind == "server" and len(places) > 1):
        return None
    return places if all(0 < place.port < 65536 for place in places) else None


def _options(query: str, kind: StoreKind, tls: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    known = _FILES | _SENTINEL if kind == "sentinel" else _FILES
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or not value:
            raise ValueError(f"has an unknown query; known are {', '.join(known)}, each with a value")
        options[known[name]] = Path(value) if name in _FILES else value
    if options.keys() & _FILES.values() and not tls:
        raise ValueError("names files for TLS but does not use it; write rediss instead of redis")
    if ("cert_file" in options) != ("key_file" in options):
        raise ValueError("needs ssl_certfile and ssl_keyfile together")
    if "sentinel_username" in options and "sentinel_password" not in options:
        raise ValueError("has a sentinel_username without a sentinel_password; add it as ${NAME}")
    return options
