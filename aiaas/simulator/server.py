"""Start, serve and stop a simulator, as a separate process (`run_simulator`) or inside a test (`running_simulator`).

It stops like vLLM 0.32 (transcripts 131, 139, 140):
    SIGTERM, shutdown_timeout None   refuse connections at once; requests in flight stop sending, their connections stay
                                     open, and the process ends when the clients have left. A fault that reaches SIGTERM
                                     strikes them instead
    SIGTERM, shutdown_timeout N      requests in flight finish; new generate requests get 500 while /health stays 200;
                                     the process ends when every request has finished, or after N seconds
    SIGINT, or a second signal       drop everything at once (usually Ctrl-C at a terminal)
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aiaas.errors import EnvironmentFault
from aiaas.simulator.app import App, Received
from aiaas.simulator.faults import Act, Fault, Point, Reach, parse_fault
from aiaas.simulator.http import HttpServer
from aiaas.simulator.options import SimulatorOptions

LISTEN_BACKLOG = 1024
STOP_POLL = 0.02  # s, between two checks whether a stopping simulator is done


async def run_simulator(
    options: SimulatorOptions, *, host: str, port: int, ready: Callable[[int], None] | None = None
) -> None:
    """Run a simulator until SIGTERM or SIGINT. Call it in the main thread, since it handles signals.

    Args:
        options: how the simulator behaves.
        host: address to listen on.
        port: port, 0 for any free port.
        ready: called once with the port when the simulator accepts connections.

    Raises:
        EnvironmentFault: the port cannot be bound.
    """
    loop = asyncio.get_running_loop()
    running = await _start(options, host, port, record=0)
    stop = _StopSignals()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.caught, number)
    try:
        if ready is not None:
            ready(running.port)
        await stop.first.wait()
        await _stop_gently(running, options.shutdown_timeout, stop.now)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        await running.kill()


@dataclass(frozen=True, slots=True)
class Stats:
    """A simulator's counts at one moment.

    connections, accepted       open now; opened since the start
    running, waiting            sequences in generation, and waiting for a place
    begun, finished, aborted    generations that entered the batch, completed, left early in any phase
    generated_tokens            since the start
    """

    connections: int
    accepted: int
    running: int
    waiting: int
    begun: int
    finished: int
    aborted: int
    generated_tokens: int


class SimulatorHandle:
    """A running simulator, for tests.

    url   "http://127.0.0.1:PORT"
    port  the port that the simulator listens on
    """

    def __init__(
        self,
        app: App,
        http: HttpServer,
        server: asyncio.Server | None,
        sock: socket.socket,
        crowd: tuple[socket.socket, ...] = (),
    ) -> None:
        host, port = sock.getsockname()[:2]
        self.port: int = port
        self.url = f"http://{'[' + host + ']' if ':' in host else host}:{port}"
        self._app = app
        self._http = http
        self._server = server
        self._socket = sock
        self._crowd = crowd
        app.close_port = self._close_port

    @property
    def options(self) -> SimulatorOptions:
        """The options that the simulator was started with."""
        return self._app.options

    @property
    def received(self) -> list[Received]:
        """The last requests that the simulator received (1000 by default), oldest first."""
        return list(self._app.received)

    @property
    def stats(self) -> Stats:
        """The current counts."""
        engine = self._app.engine
        return Stats(
            connections=len(self._http.connections),
            accepted=self._http.accepted,
            running=engine.running,
            waiting=engine.waiting,
            begun=engine.begun,
            finished=engine.finished,
            aborted=engine.aborted,
            generated_tokens=engine.generated_tokens,
        )

    def set_fault(self, fault: Fault | str) -> None:
        """Apply a fault from the next request on ("none" restores normal behaviour).

        Faults that strike at the connect (`refuse`, `hang-before-connect`) only work if set at the start.
        """
        self._app.fault = parse_fault(fault) if isinstance(fault, str) else fault

    def strike(self, fault: Fault | str) -> None:
        """Strike every request in flight now, as a fault written with `,all` does when its first request is struck."""
        self._app.strike_all(parse_fault(fault) if isinstance(fault, str) else fault)

    async def wait_for(self, condition: Callable[[Stats], bool], timeout: float = 2.0) -> Stats:
        """Wait until the stats meet the condition, and return them.

        Raises:
            TimeoutError: the stats did not meet the condition within `timeout` seconds; the message has the last stats.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while not condition(stats := self.stats):
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"the simulator did not meet the condition within {timeout} s: {stats}")
            await asyncio.sleep(0.002)
        return stats

    def stop_listening(self) -> None:
        """Refuse new connections; open connections continue."""
        if self._server is not None:
            self._server.close()
        else:
            for sock in (self._socket, *self._crowd):
                sock.close()

    def _close_port(self) -> None:
        self.stop_listening()
        self._http.stop()

    def drop_connections(self) -> None:
        """Close every open connection at once."""
        self._http.abort()
        self._http.stopping = False

    async def kill(self) -> None:
        """Close the port and all connections at once, as after SIGKILL.

        asyncio loses a connection that it accepts in the turn of the loop in which its server closes, and leaves its
        socket open: so it accepts no more first, and what it has accepted gets its protocol.
        """
        loop = asyncio.get_running_loop()
        for sock in () if self._server is None else self._server.sockets:
            loop.remove_reader(sock.fileno())
        for _ in range(4):
            await asyncio.sleep(0)
        self.stop_listening()
        self._http.abort()
        await asyncio.sleep(0)  # let the transports call connection_lost


@contextlib.asynccontextmanager
async def running_simulator(
    options: SimulatorOptions | None = None, *, host: str = "127.0.0.1", port: int = 0, record: int = 1000
) -> AsyncIterator[SimulatorHandle]:
    """Run a simulator in this process and loop until the end of the `async with`.

    Args:
        options: how the simulator behaves; the default has a ttft of 50 ms and a token every 10 ms.
        host: address to listen on.
        port: 0 for any free port.
        record: how many requests `received` keeps.
    """
    handle = await _start(options or SimulatorOptions(), host, port, record=record)
    try:
        yield handle
    finally:
        await handle.kill()


async def _start(options: SimulatorOptions, host: str, port: int, *, record: int) -> SimulatorHandle:
    loop = asyncio.get_running_loop()
    app = App(options, loop, record=record)
    http = HttpServer(loop, options.keep_alive, app.handle)
    sock = _bind(host, port)
    if options.fault.strikes(Point.CONNECT):
        crowd = _fill_backlog(sock) if options.fault.act is Act.HANG else ()
        return SimulatorHandle(app, http, None, sock, crowd)  # a bound socket that does not listen refuses connections
    server = await loop.create_server(http.protocol, sock=sock, backlog=LISTEN_BACKLOG)
    return SimulatorHandle(app, http, server, sock)


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket, without SO_REUSEPORT, so that two servers never share a port unnoticed."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EnvironmentFault(
            f"cannot listen on {host}: {error.strerror or error}; choose an address of this machine"
        ) from error
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise EnvironmentFault(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    sock.setblocking(False)
    return sock


def _fill_backlog(sock: socket.socket) -> tuple[socket.socket, ...]:
    """Listen, fill the queue and never accept, so that Linux ignores every further connection attempt."""
    sock.listen(0)
    crowd = tuple(socket.socket(sock.family) for _ in range(4))
    for filler in crowd:
        filler.setblocking(False)
        filler.connect_ex(sock.getsockname())
    return crowd


class _StopSignals:
    """The first signal sets `first`; SIGINT or a second signal sets `now`."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.now = asyncio.Event()

    def caught(self, number: int) -> None:
        """Handle a signal."""
        if number == signal.SIGINT or self.first.is_set():
            self.now.set()
        self.first.set()


async def _stop_gently(running: SimulatorHandle, timeout: float | None, now: asyncio.Event) -> None:
    """Stop as in the module's table; return when the process may end."""
    app, http = running._app, running._http
    if timeout is None:
        running.stop_listening()
        if app.fault.reach is Reach.SIGTERM:
            app.strike_all(app.fault)
        else:
            app.engine.freeze_all()
        http.stop()
        while http.connections and not now.is_set():  # noqa: ASYNC110  (the last client may leave in an hour)
            await asyncio.sleep(STOP_POLL)
        return
    app.draining = True
    deadline = asyncio.get_running_loop().time() + timeout
    while not app.engine.idle and not now.is_set() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(STOP_POLL)
