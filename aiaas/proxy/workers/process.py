"""A worker from its supervisor's side: its process, its messages, and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final

import msgspec

from aiaas.proxy.admin.port import Query
from aiaas.proxy.telemetry.key_counters import KeySums
from aiaas.proxy.workers.channel import (
    NO_SUMS,
    Begin,
    Channel,
    Counted,
    Describe,
    Description,
    EngineSuspected,
    Leaving,
    Message,
    Report,
    Serving,
)
from aiaas.proxy.workers.merge import MetricFamily

# Seconds that a worker's process gets to exit after its channel has ended: it has nothing left to do.
EXIT_PATIENCE: Final = 5.0
_SUMS: Final[msgspec.msgpack.Decoder[dict[str, KeySums]]] = msgspec.msgpack.Decoder(dict[str, KeySums])


class WorkerProcess:
    """A worker process. `run` follows it from its start to its end.

    number      the worker's number, which its replacement gets as well
    serving     set when the worker accepts connections; `keys` is the number of its keys then
    gone        set when the worker no longer accepts connections: it has ended, or is stopping after a signal
    families    the metrics of its last report, but for those by key
    killed      whether the supervisor has sent it SIGKILL
    heard       the loop's time of the worker's last message, or of its start
    has_spoken  whether the worker has sent a message
    """

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.number = number
        self.serving = asyncio.Event()
        self.gone = asyncio.Event()
        self.keys = 0
        self.families: Sequence[MetricFamily] = ()
        self._by_key = NO_SUMS
        self.heard = asyncio.get_running_loop().time()
        self.has_spoken = False
        self.killed = False
        self._process = process
        self._channel = channel
        self._answer: asyncio.Future[None] | None = None
        self._heard_out = False
        self._looks: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._numbers = count()

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        number: int,
        begin: Begin,
        listener: socket.socket,
        log: tuple[int, int],
        env: Mapping[str, str],
    ) -> WorkerProcess:
        """Start a worker: `command`, then its number and the descriptors of its channel, its socket and the log's lock.

        log  the descriptor of the log, which becomes the worker's stdout, and the descriptor of the log's lock
        The worker gets a session of its own, so that Ctrl-C at the terminal reaches only the supervisor, which then
        stops the workers. Raises OSError if the process cannot be started.
        """
        ours, its = socket.socketpair()
        fd, lock = log
        passed = (its.fileno(), listener.fileno(), lock)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *map(str, (number, *passed)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=fd,
                pass_fds=passed,
                start_new_session=True,
                env=dict(env),
            )
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
        ours.setblocking(False)
        worker = cls(number, process, await Channel.open(ours))
        worker.send(begin)
        return worker

    def __repr__(self) -> str:
        state = "gone" if self.gone.is_set() else "serving" if self.serving.is_set() else "starting"
        return f"<worker {self.number}: process {self.pid}, {state}>"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send the worker a message, without waiting."""
        self._channel.send(message)

    async def run(self, on_suspect: Callable[[str], None]) -> str:
        """Read the worker's messages until its channel ends, and return how the process ended.

        on_suspect  called with the backend of an engine in which a request has timed out
        """
        try:
            while (message := await self._channel.receive()) is not None:
                self._hear(message, on_suspect)
        finally:
            self._heard_out = True
            self.gone.set()
            self._answered()
            for look in self._looks.values():
                look.cancel()
        await self._channel.close()
        try:
            async with asyncio.timeout(EXIT_PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        return ended_by(code)

    def _hear(self, message: Message, on_suspect: Callable[[str], None]) -> None:
        self.heard = asyncio.get_running_loop().time()
        self.has_spoken = True
        match message:
            case Serving(keys=keys):
                self.keys = keys
                self.serving.set()
            case EngineSuspected(backend=backend):
                on_suspect(backend)
            case Leaving():
                self.gone.set()
            case Counted(families=families, asked=asked, by_key=by_key):
                self.families = families
                self._by_key = by_key
                if asked:
                    self._answered()

            case Description(number=number, found=found) if number in self._looks:
                self._looks.pop(number).set_result(found)

    @property
    def by_key(self) -> dict[str, KeySums]:
        """The sums by key of its last report; none if these cannot be read."""
        try:
            return _SUMS.decode(self._by_key)
        except msgspec.DecodeError:
            return {}

    async def report(self) -> None:
        """Ask the worker for its metrics, and wait until `families` has them."""
        if self._heard_out:
            return
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            self.send(Report())
        await asyncio.shield(self._answer)

    async def look(self, what: str, query: Query) -> msgspec.Raw:
        """Ask the worker to describe itself; cancelled if it ends first."""
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        if self._heard_out:
            answer.cancel()
        number = next(self._numbers)
        self._looks[number] = answer
        self.send(Describe(number, self.number, what, query))
        try:
            return await answer
        finally:
            self._looks.pop(number, None)

    def _answered(self) -> None:
        if self._answer is not None:
            self._answer.set_result(None)
            self._answer = None

    def kill(self) -> None:
        """Send SIGKILL."""
        self.killed = True
        if self._process.returncode is None:
            self._process.kill()


def ended_by(code: int) -> str:
    """Return how a process ended, in words; `code` is asyncio's return code, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
