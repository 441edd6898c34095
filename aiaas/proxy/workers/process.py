"""A worker as its supervisor sees it: the process, what it last said, and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiaas.proxy.workers.channel import Begin, Channel, Counted, EngineSuspected, Leaving, Message, Report, Serving
from aiaas.proxy.workers.merge import MetricFamily

# Seconds from the end of a worker's channel to the end of its process: it has nothing left to do.
EXIT_PATIENCE: Final = 5.0


class WorkerProcess:
    """A worker. `run` is its whole life.

    number    which one; its replacement has the same
    serving   set when it takes connections; `keys` is how many it knows then
    gone      set when it takes none any more: it has ended, or was told to by somebody else
    families  what it last said it had counted
    killed    whether we have sent it SIGKILL
    heard     the loop's time when it last said anything, or was started; has_spoken: the former
    """

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.number = number
        self.serving = asyncio.Event()
        self.gone = asyncio.Event()
        self.keys = 0
        self.families: Sequence[MetricFamily] = ()
        self.heard = asyncio.get_running_loop().time()
        self.has_spoken = False
        self.killed = False
        self._process = process
        self._channel = channel
        self._answer: asyncio.Future[None] | None = None
        self._heard_out = False

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
        """Start `command`, with its number and the descriptors of its channel, its socket and the log's lock behind it.

        log  the descriptor that the log goes to, which becomes its stdout, and that of the log's lock
        In a session of its own: a Ctrl-C at the terminal is for the supervisor, which tells the workers what to do.
        Raises OSError where no process can be had.
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
        """Say something to it, without waiting."""
        self._channel.send(message)

    async def run(self, on_suspect: Callable[[str], None]) -> str:
        """Read its messages to the end, and return how the process ended. `on_suspect` gets the backend of an engine
        in which a request has timed out."""
        try:
            while (message := await self._channel.receive()) is not None:
                self._hear(message, on_suspect)
        finally:
            self._heard_out = True
            self.gone.set()
            self._answered()
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
            case Counted(families=families, asked=asked):
                self.families = families
                if asked:
                    self._answered()

    async def report(self) -> None:
        """Ask what it has counted, and wait until `families` is as new as that."""
        if self._heard_out:
            return
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            self.send(Report())
        await asyncio.shield(self._answer)

    def _answered(self) -> None:
        if self._answer is not None:
            self._answer.set_result(None)
            self._answer = None

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        if self._process.returncode is None:
            self._process.kill()


def ended_by(code: int) -> str:
    """How a process ended, in words; `code` as asyncio gives it, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
