"""The admin port: the gateway describes its own state, on 127.0.0.1 only and read-only.

There is no key: who can connect to loopback may read. So the port keeps web pages out, which a browser on this machine
would fetch for anybody:

1. `Host` must be a name of loopback: a page whose own name was pointed at 127.0.0.1 (DNS rebinding) is refused.
2. No answer allows another origin to read it (CORS), and a request that a browser marks as another site's is refused.
3. Only GET and HEAD are served, and nothing changes the gateway. (`chat.py` is the exception, in a quickstart.)

A taken port is logged, and tried again until it is free: the gateway serves without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from math import inf
from typing import Final, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec

from aiaas.errors import EnvironmentFault
from aiaas.proxy.admin.chat import CHAT_PATH, Chat, NoChatError
from aiaas.proxy.admin.page import PAGE_TYPE, read_page
from aiaas.proxy.admin.recent import MOST_ENDED
from aiaas.proxy.client.answers import answer
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.metrics_port import HEAD_SIZE, HEAD_TIMEOUT, FaultsOnly
from aiaas.proxy.client.open_side import OpenSide
from aiaas.proxy.client.ports import PORT_PATIENCE, bind
from aiaas.proxy.client.refusal import ConnectionLimits
from aiaas.proxy.client.request_target import path_of
from aiaas.proxy.telemetry.log import JsonLog

LOOPBACK: Final = "127.0.0.1"
_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
# `Sec-Fetch-Site` of a request by a page of this port, and of an address that a person typed.
_SITES: Final = frozenset({"", "same-origin", "none"})
_HEADERS: Final = (
    b"cache-control: no-store\r\nx-content-type-options: nosniff\r\nx-frame-options: DENY\r\n"
    b"cross-origin-resource-policy: same-origin\r\nreferrer-policy: no-referrer\r\n"
)
_JSON: Final = b"application/json; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"
_PLACES: Final = b"The page is at /, the gateway's state at /status, /requests and /refusals.\n"

# Connections at a time: a page, a `top` and a person.
MOST_CONNECTIONS: Final = 32
# Bytes of answers that wait for their readers: beyond that, no further answer is made. One of 10,000 requests has 8 MB.
MOST_UNREAD: Final = 32 * 1024 * 1024
ROWS: Final = 100
# Seconds between two tries to get a port that another program has.
AGAIN: Final = 0.25


class Query(msgspec.Struct, frozen=True):
    """The query of `/requests` and `/refusals`. None in a field: any.

    id    the beginning of request ids
    key   a key's id, or its user
    live  only requests under way
    """

    limit: int = ROWS
    live: bool = False
    id: str | None = None
    key: str | None = None
    model: str | None = None
    status: int | None = None


class Source(Protocol):
    """Makes the answers, as JSON."""

    async def status(self) -> bytes:
        """The answer of `/status`."""

    async def requests(self, asked: Query) -> bytes:
        """The answer of `/requests`."""

    async def refusals(self, asked: Query) -> bytes:
        """The answer of `/refusals`."""


class AdminPort:
    """The listener on `port`; 0 listens nowhere.

    crashed  called with an unexpected exception of a request
    chat     answers the page's chat, which it does not have without one
    """

    def __init__(
        self,
        port: int,
        source: Source,
        log: JsonLog,
        crashed: Callable[[BaseException | None], None],
        chat: Chat | None = None,
    ) -> None:
        self._port = port
        self._source = source
        self._log = log
        self._limits = ConnectionLimits(HEAD_TIMEOUT, HEAD_SIZE)
        self._open_side = OpenSide(self._answer, self._limits, FaultsOnly(crashed))
        self._server: asyncio.Server | None = None
        self._chat = chat
        self._page = read_page(chat=chat is not None)
        self._closed = asyncio.Event()
        self._turn = asyncio.Lock()  # one answer is made at a time
        if not port:
            self._closed.set()

    async def begin(self, stack: AsyncExitStack) -> None:
        """Listen, if the port is free, until `stack` ends."""
        stack.push_async_callback(self._open_side.shutdown, 1.0)
        stack.callback(self.close)
        if not self._closed.is_set():
            await self._try()

    async def run(self) -> None:
        """Try again until the port is free. After PORT_PATIENCE, log once that another program has it."""
        loop = asyncio.get_running_loop()
        warn_at = loop.time() + PORT_PATIENCE
        while self._server is None and not self._closed.is_set():
            fault = await self._try()
            if fault is None and warn_at == inf:
                self._log.event("info", "admin_port_open", port=self._port)
            elif fault is not None and loop.time() >= warn_at:
                warn_at = inf
                hint = "the gateway serves without it; stop the other program, or set monitoring.admin_port (0: off)"
                self._log.event("warning", "admin_port_taken", error=fault, hint=hint)
            await asyncio.sleep(AGAIN)

    def close(self) -> None:
        """Stop accepting connections, and free the port. Calling `close` again changes nothing."""
        self._closed.set()
        if self._server is not None:
            self._server.close()

    async def _try(self) -> str | None:
        """Listen, or return why that is not possible."""
        try:
            listener = bind(LOOPBACK, self._port, "monitoring.admin_port")
        except EnvironmentFault as error:
            return error.message
        self._server = await asyncio.get_running_loop().create_server(self._open_side, sock=listener, backlog=16)
        if self._closed.is_set():
            self._server.close()
        return None

    # -- a request ------------------------------------------------------------------------------------------------

    async def _answer(self, request: HttpRequest, client: ClientConnection) -> bool:
        try:
            status, content_type, body = await self._reply(request, client)
        except NoChatError as error:
            status, content_type, body = error.status, _TEXT, f"{error}\n".encode()
        if client.begun:  # the chat has been answered
            return False
        extra = _HEADERS + (b"allow: GET, HEAD\r\n" if status == 405 else b"")
        if content_type is PAGE_TYPE:
            extra += self._page.headers
        head = answer(status, content_type, body, extra=extra, close=True, head_only=True)
        if client.transport is not None:
            client.transport.write(head)
            if request.method != "HEAD":
                client.transport.write(body)  # apart, since it may be large
        return False

    async def _reply(self, request: HttpRequest, client: ClientConnection) -> tuple[int, bytes, bytes]:
        fault = fault_of_sender(request.headers)
        if fault is not None:
            return 403, _TEXT, fault
        if self._chat is not None and request.method == "POST" and path_of(request.raw_path) == CHAT_PATH:
            await self._chat.relay(request, client)
            return 502, _TEXT, b"The gateway closed the connection without an answer.\n"
        if request.method not in ("GET", "HEAD"):
            return 405, _TEXT, b"This port is read-only: GET or HEAD.\n"
        if len(self._open_side.connections) > MOST_CONNECTIONS:
            return 503, _TEXT, b"Too many connections; try again shortly.\n"
        path = path_of(request.raw_path)
        if path == "/":
            return 200, PAGE_TYPE, self._page.body
        try:
            asked = asked_by(request.raw_path)
        except ValueError as error:
            return 400, _TEXT, f"{error}\n".encode()
        async with self._turn:
            if self._unread > MOST_UNREAD:
                return 503, _TEXT, b"Too many answers wait for their readers; try again shortly.\n"
            return await self._found(path, asked)

    @property
    def _unread(self) -> int:
        wires = [connection.wire for connection in self._open_side.connections]
        return sum(wire.get_write_buffer_size() for wire in wires if wire is not None)

    async def _found(self, path: str | None, asked: Query) -> tuple[int, bytes, bytes]:
        match path:
            case "/status":
                return 200, _JSON, await self._source.status()
            case "/requests":
                return 200, _JSON, await self._source.requests(asked)
            case "/refusals":
                return 200, _JSON, await self._source.refusals(asked)
        return 404, _TEXT, _PLACES


def fault_of_sender(headers: Mapping[str, str]) -> bytes | None:
    """Why a request is refused by who seems to have sent it; None if it is welcome."""
    host = headers.get("host", "")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    if name.lower() not in _NAMES:
        return b"This port answers to localhost, 127.0.0.1 and [::1] only: write one of these names in the URL.\n"
    origin = headers.get("origin")
    if (origin is not None and origin != f"http://{host}") or headers.get("sec-fetch-site", "") not in _SITES:
        return b"This port does not answer pages of other sites.\n"
    return None


def asked_by(target: str) -> Query:
    """The query of a request target. Raises ValueError, with a text for a person."""
    given = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True, max_num_fields=16))
    unknown = [name for name in given if name not in Query.__struct_fields__]
    if unknown:
        names = ", ".join(Query.__struct_fields__)
        raise ValueError(f"{unknown[0][:40]!a} is not a parameter; allowed: {names}")
    found: dict[str, object] = {name: given[name][:200] for name in ("id", "key", "model") if given.get(name)}
    for name, low, high in (("limit", 0, MOST_ENDED), ("status", 100, 599)):
        if name in given:
            found[name] = _number(name, given[name], low, high)
    found["live"] = given.get("live", "") not in ("", "0", "false")
    return Query(**found)  # type: ignore[arg-type]


def _number(name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise ValueError(f"{name} must be a number from {low} to {high}")
    return int(text)
