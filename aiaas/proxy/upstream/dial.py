"""Where a connection to an endpoint goes: the addresses of its name, and the TLS context.

A name is looked up in the background (`resolve.py`), so that a request connects to an address that is known already.
Only before the first answer does a connection wait for a look-up, and all that wait share one. While DNS is away the
addresses that it gave last are kept.

Several addresses are tried in their order, each with its part of the time that is left. An address that did not take a
connection goes to the end of the order for AVOIDED seconds.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from aiaas.authorities import UNKNOWN_AUTHORITY, AuthoritiesError, trusting
from aiaas.config.address import is_address
from aiaas.httpclient.mismatch import tls_fault
from aiaas.plan.model import EndpointPlan, TrustPlan
from aiaas.proxy.client.handler import result_by

AVOIDED: Final = 30.0
# X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH (OpenSSL, x509_vfy.h).
_OTHER_NAME: Final = frozenset({62, 64})

# The IP addresses of (host, port). Raises OSError or UnicodeError where it has none.
Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]
P = TypeVar("P", bound=asyncio.BaseProtocol)


async def addresses_of(host: str, port: int) -> list[str]:
    """As the machine resolves names: hosts file, search domains, IPv4 and IPv6. Off the event loop, in a thread.

    getaddrinfo does not return a time to live.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


def why_unresolved(error: OSError | UnicodeError) -> str:
    """The reason why a name has no address. UnicodeError: the name does not fit into DNS."""
    return getattr(error, "strerror", None) or str(error)


def why_distrusted(error: ssl.SSLError, trust: TrustPlan) -> str:
    """The reason why a TLS handshake failed, and which field of the config may be the cause."""
    fault = tls_fault(error)
    if not isinstance(error, ssl.SSLCertVerificationError):
        return fault
    field = f"{trust.section}.ca_file" if trust.section else "SSL_CERT_FILE"
    if error.verify_code in UNKNOWN_AUTHORITY and trust.ca_file is not None:
        return f"{fault}; {field} ({trust.ca_file}) does not have that authority"
    if error.verify_code in UNKNOWN_AUTHORITY:
        return f"{fault}; name a file with that authority's certificate in {field}"
    if error.verify_code in _OTHER_NAME and trust.section:
        return f"{fault}; if it is the right server, write a name of its certificate into {trust.section}.server_name"
    return fault


class ClientTls:
    """The contexts of all https endpoints, by the file of their authorities; None: the machine's authorities.

    Reading those takes 20 ms, so a context is made once, in a thread, when the first connection needs it; it is in
    `made` from then on. Connections that are open keep the context that they began with.
    """

    def __init__(self, make: Callable[[Path | None], ssl.SSLContext] = trusting) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self.made: dict[Path | None, ssl.SSLContext] = {}

    async def context(self, ca_file: Path | None) -> ssl.SSLContext:
        """The context. Raises OSError where the authorities cannot be read; the next call tries again."""
        async with self._lock:
            if ca_file not in self.made:
                self.made[ca_file] = await self._read(ca_file)
            return self.made[ca_file]

    async def read(self, ca_files: Mapping[Path, str]) -> Mapping[Path, str]:
        """Read these files now, and use them for new connections (`Plan.ca_files`). Returns the errors, each with the
        field that names the file; the last good authorities of such a file stay."""
        errors = {}
        async with self._lock:  # without the lock an older reading could be put in force last
            for ca_file, section in ca_files.items():
                try:
                    self.made[ca_file] = await self._read(ca_file)
                except AuthoritiesError as error:
                    errors[ca_file] = f"{section}.ca_file: {error}"
        return errors

    async def _read(self, ca_file: Path | None) -> ssl.SSLContext:
        return await asyncio.get_running_loop().run_in_executor(None, self._make, ca_file)


class Dialer:
    """The way to one endpoint. `addresses` are the known ones, empty before the first answer. `trust` may change."""

    def __init__(self, endpoint: EndpointPlan, tls: ClientTls, resolve: Resolve = addresses_of) -> None:
        self._host, self._port = endpoint.host, endpoint.port
        self._tls = tls if endpoint.tls else None
        self.trust = endpoint.trust
        self._resolve = resolve
        self._asking: asyncio.Task[Sequence[str]] | None = None
        self._avoided: dict[str, float] = {}  # address -> the loop's time until which it comes last
        self.addresses: tuple[str, ...] = (endpoint.host,) if is_address(endpoint.host) else ()

    async def open(self, make: Callable[[], P], until: float) -> tuple[asyncio.BaseTransport, P]:
        """A connection by `until`, the loop's time; waits for a Pause. Raises OSError (TimeoutError, ssl.SSLError,
        ConnectionRefusedError among them) or UnicodeError."""
        loop = asyncio.get_running_loop()
        known: Sequence[str] = self.addresses
        context = None if self._tls is None else self._tls.made.get(self.trust.ca_file)
        if not known or (context is None and self._tls is not None):
            known, context = await result_by(until, self._prepared())
        name = None if context is None else self.trust.server_name or self._host
        addresses = known if len(known) == 1 else self._in_order(known, loop.time())
        failure: OSError | None = None
        for index, address in enumerate(addresses):
            now = loop.time()
            part = (until - now) / (len(addresses) - index)
            opening = loop.create_connection(make, address, self._port, ssl=context, server_hostname=name)
            try:
                opened = await result_by(now + part, opening, _abort)
            except OSError as error:
                self._avoided[address] = loop.time() + AVOIDED
                # A refusal is the most informative error: the host answers, and nothing listens on the port.
                failure = failure if isinstance(failure, ConnectionRefusedError) else error
            else:
                self._avoided.pop(address, None)
                return opened
        assert failure is not None, "a resolver gives at least one address"
        raise failure

    async def _prepared(self) -> tuple[Sequence[str], ssl.SSLContext | None]:
        context = None if self._tls is None else await self._tls.context(self.trust.ca_file)
        return self.addresses or await self._ask(), context

    def found(self, addresses: Sequence[str]) -> bool:
        """Connect to these (at least one) from now on. Returns whether others were known before, in whichever order."""
        changed = bool(self.addresses) and set(addresses) != set(self.addresses)
        self.addresses = tuple(addresses)
        self._avoided = {address: until for address, until in self._avoided.items() if address in addresses}
        return changed

    def _in_order(self, addresses: Sequence[str], now: float) -> Sequence[str]:
        return sorted(addresses, key=lambda address: self._avoided.get(address, 0.0) > now)

    async def _ask(self) -> Sequence[str]:
        """The first look-up; a caller that is cancelled does not end it for the others."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._first(), name=f"getaddrinfo {self._host}")
            self._asking.add_done_callback(_heard)
        return await asyncio.shield(self._asking)

    async def _first(self) -> Sequence[str]:
        found = await self._resolve(self._host, self._port)
        if not found:
            raise OSError(f"{self._host} has no address")
        if not self.addresses:
            self.found(found)
        return self.addresses


def _heard(task: asyncio.Task[Sequence[str]]) -> None:
    """Retrieve the error: all callers may have left, and asyncio would log an exception never retrieved."""
    if not task.cancelled():
        task.exception()


def _abort(opened: tuple[asyncio.BaseTransport, object]) -> None:
    cast(asyncio.Transport, opened[0]).abort()
