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
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar, cast

from aiaas.config.address import is_address
from aiaas.plan.model import EndpointPlan
from aiaas.proxy.client.handler import result_by

AVOIDED: Final = 30.0

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


class ClientTls:
    """The context of all https endpoints. Reading the machine's authorities takes 20 ms, so one is made, in a thread,
    when the first connection needs it; `made` from then on."""

    def __init__(self, make: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self.made: ssl.SSLContext | None = None

    async def context(self) -> ssl.SSLContext:
        """The context. Raises OSError where the authorities cannot be read; the next call tries again."""
        async with self._lock:
            if self.made is None:
                self.made = await asyncio.get_running_loop().run_in_executor(None, self._make)
            return self.made


class Dialer:
    """The way to one endpoint. `addresses` are the known ones, empty before the first answer."""

    def __init__(self, endpoint: EndpointPlan, tls: ClientTls, resolve: Resolve = addresses_of) -> None:
        self._host, self._port = endpoint.host, endpoint.port
        self._tls = tls if endpoint.tls else None
        self._resolve = resolve
        self._asking: asyncio.Task[Sequence[str]] | None = None
        self._avoided: dict[str, float] = {}  # address -> the loop's time until which it comes last
        self.addresses: tuple[str, ...] = (endpoint.host,) if is_address(endpoint.host) else ()

    async def open(self, make: Callable[[], P], until: float) -> tuple[asyncio.BaseTransport, P]:
        """A connection by `until`, the loop's time; waits for a Pause. Raises OSError (TimeoutError, ssl.SSLError,
        ConnectionRefusedError among them) or UnicodeError."""
        loop = asyncio.get_running_loop()
        known: Sequence[str] = self.addresses
        context = None if self._tls is None else self._tls.made
        if not known or (context is None and self._tls is not None):
            known, context = await result_by(until, self._prepared())
        name = None if context is None else self._host
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
        context = None if self._tls is None else await self._tls.context()
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
