"""Keeps one engine running: start, watch /health, restart, stop. What to do is decided in `lifecycle`; this acts.

Rules:

1. One owned, named task does everything; `stop` ends it and waits for it, whatever state it is in.
2. The engine's output is read always, also while nobody listens: a full pipe would freeze the engine.
3. A process is never left behind: every way out of `_run_once` ends in `_end`, and the launcher covers our own death.
4. /health counts only while our own process lives, and the port is tried first: else another program's answer on that
   port would pass for the engine's.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

from aiaas.engines import launch
from aiaas.engines.command import HOST, NO_VLLM, engine_argv, engine_environment, refused_shutdown_timeout
from aiaas.engines.lifecycle import Died, Event, GaveUp, Life, Restarting, StillLoading, Stopped
from aiaas.errors import WorldError
from aiaas.plan.model import EnginePlan

POLL_INTERVAL: Final = 0.1  # seconds between looks at /health while loading
POLL_TIMEOUT: Final = 2.0  # seconds for one look
REPORT_INTERVAL: Final = 5.0  # seconds between StillLoading events
LAST_LINES: Final = 20  # kept for Died: a traceback's end and the message before it
LONGEST_LINE: Final = 8192  # characters; longer ones are cut, the rest is dropped
KILL_PATIENCE: Final = 5.0  # seconds for the launcher to kill the tree before it is killed itself


class EngineSupervisor:
    """One managed engine.

    name           for the task's name and for messages: the backend's
    engine         what to run; it listens on 127.0.0.1:engine.port
    drain_timeout  seconds that the engine may take, on SIGTERM, to finish what is in flight
    on_event       called with each `lifecycle.Event`, in order, on the event loop; must not block
    on_line        called with each line that the engine writes (stdout and stderr alike), without its newline;
                   must not block nor raise
    environ        the environment to inherit; os.environ when None
    python         and `python_options`: what a simulator runs under
    """

    def __init__(
        self,
        name: str,
        engine: EnginePlan,
        *,
        drain_timeout: float,
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None],
        environ: Mapping[str, str] | None = None,
        python: str = sys.executable,
        python_options: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.engine = engine
        self._drain_timeout = drain_timeout
        self._on_event = on_event
        self._on_line = on_line
        self._environ = environ
        self._python = python
        self._python_options = python_options
        self._life = Life()
        self._knows_shutdown_timeout = True
        self._process: asyncio.subprocess.Process | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._settled = asyncio.Event()  # healthy for the first time, given up, or stopped

    def __repr__(self) -> str:
        state = "healthy" if self._life.healthy_at is not None else "not healthy"
        return f"<engine {self.name} ({self.engine.kind}) at {HOST}:{self.engine.port}, {state}>"

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, which leads the engine's process group; None while nothing runs."""
        return self._process.pid if self._process is not None else None

    @property
    def healthy(self) -> bool:
        """Whether the present process has answered /health."""
        return self._life.healthy_at is not None

    async def start(self) -> None:
        """Start the engine and return at once; events tell the rest.

        Raises WorldError where there is no `vllm`, or where the port is taken.
        """
        environment = engine_environment(self.engine, os.environ if self._environ is None else self._environ)
        vllm = find_vllm(environment.get("PATH"), self._python)
        if self.engine.kind == "vllm" and vllm is None:
            raise WorldError(f"backend {self.name}: {NO_VLLM}")
        if not _port_is_free(self.engine.port):
            raise WorldError(f"backend {self.name}: its engine's port {self.engine.port} is taken by another program")
        self._task = asyncio.create_task(self._keep_running(environment, vllm), name=f"engine {self.name}")

    async def wait_settled(self) -> bool:
        """Wait until the engine was healthy once (True), or until it is given up or stopped (False)."""
        await self._settled.wait()
        return self._life.ever_healthy

    async def stop(self, grace: float) -> None:
        """Let the engine finish for up to `grace` seconds, then kill whatever of it is left. Idempotent."""
        if self._task is None or self._stopping.is_set():
            return
        started = _now()
        self._stopping.set()
        killed = False
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            killed = not await self._left_in_time(process, grace)
            if killed:
                await _kill(process)
        await asyncio.gather(self._task, return_exceptions=True)
        self._settled.set()
        self._on_event(Stopped(_now() - started, killed))

    def hurry(self) -> None:
        """End the grace of a `stop` that is under way: whoever waits for it has lost patience."""
        self._hurried.set()

    async def _left_in_time(self, process: asyncio.subprocess.Process, grace: float) -> bool:
        waits = [asyncio.create_task(process.wait()), asyncio.create_task(self._hurried.wait())]
        await asyncio.wait(waits, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return process.returncode is not None

    async def _keep_running(self, environment: Mapping[str, str], vllm: str | None) -> None:
        try:
            while not self._stopping.is_set():
                argv = engine_argv(
                    self.engine,
                    python=self._python,
                    vllm=vllm,
                    drain_timeout=self._drain_timeout,
                    knows_shutdown_timeout=self._knows_shutdown_timeout,
                    python_options=self._python_options,
                )
                run = asyncio.create_task(self._run_once(argv, environment), name=f"engine {self.name}: a run")
                (died,) = await asyncio.gather(run, return_exceptions=True)
                if isinstance(died, Exception):  # a fault of ours: the engine gets its next start, as after its own
                    died = Died(launch.CANNOT_EXECUTE, (f"internal error: {died!r}",), _now() - self._life.started_at)
                elif isinstance(died, BaseException):
                    raise died
                if self._stopping.is_set():
                    return
                self._on_event(died)
                if self._knows_shutdown_timeout and refused_shutdown_timeout(died.last_lines):
                    self._knows_shutdown_timeout = False
                self._life, then = self._life.die(_now())
                self._on_event(then)
                if isinstance(then, GaveUp):
                    return
                await self._pause(then)
        finally:
            self._settled.set()

    async def _pause(self, restarting: Restarting) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), restarting.in_seconds)

    async def _run_once(self, argv: tuple[str, ...], environment: Mapping[str, str]) -> Died:
        """One process, from its start to its end."""
        self._life, starting = self._life.start(_now(), argv)
        self._on_event(starting)
        self._last_lines.clear()
        try:
            process, output, pipe = await _spawn((self._python, "-I", launch.__file__, *argv), environment)
        except OSError as error:  # no memory, or no process left for this user
            return Died(launch.CANNOT_EXECUTE, (f"cannot start {self._python}: {error.strerror}",), 0.0)
        self._process = process
        reader = asyncio.create_task(self._forward_lines(output), name=f"engine {self.name}: output")
        timed_out = False
        try:
            if not self._stopping.is_set():  # `stop` may have come while the process was being made
                timed_out = not await self._until_healthy(process)
                if not timed_out:
                    await process.wait()
        finally:
            await _kill(process)
            await asyncio.wait({reader}, timeout=KILL_PATIENCE)
            reader.cancel()
            pipe.close()
            self._process = None
        seconds = _now() - self._life.started_at
        return Died(None if timed_out else process.returncode, tuple(self._last_lines), seconds)

    async def _until_healthy(self, process: asyncio.subprocess.Process) -> bool:
        """False where it took too long; True where it is healthy, or has ended meanwhile."""
        started = self._life.started_at
        next_report = started + REPORT_INTERVAL
        while process.returncode is None:
            answered = await _answers_health(self.engine.port)
            now = _now()
            if answered and process.returncode is None:
                self._life, healthy = self._life.become_healthy(now)
                self._settled.set()
                self._on_event(healthy)
                return True
            if now - started >= self.engine.start_timeout:
                return False
            if now >= next_report:
                next_report = now + REPORT_INTERVAL
                self._on_event(StillLoading(now - started, self._last_lines[-1] if self._last_lines else ""))
            await _exited(process, POLL_INTERVAL)
        return True

    async def _forward_lines(self, output: asyncio.StreamReader) -> None:
        async for line in lines_of(output):
            self._last_lines.append(line)
            self._on_line(line)


def find_vllm(path: str | None, python: str) -> str | None:
    """The `vllm` on `path` (a PATH value), else the one beside the interpreter `python`, else None."""
    return shutil.which("vllm", path=path) or shutil.which("vllm", path=str(Path(python).parent))


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their end, empty ones left out; a carriage return ends one too, as progress bars use it.

    At most LONGEST_LINE characters of a line are kept, so that a process that never ends one cannot fill the memory.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest = ""
    while chunk := await stream.read(65536):
        *whole, rest = (rest + decode(chunk)).replace("\r", "\n").split("\n")
        rest = rest[:LONGEST_LINE]
        for line in whole:
            if line.strip():
                yield line[:LONGEST_LINE].rstrip()
    if rest.strip():
        yield rest.rstrip()


async def _spawn(
    argv: tuple[str, ...], environment: Mapping[str, str]
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.ReadTransport]:
    """A process, its output (stdout and stderr in one), and the pipe to close in the end.

    The output goes through a pipe of our own: asyncio's `Process.wait` also waits for its pipes to close, and so would
    never return while a left-over grandchild holds one.
    """
    loop = asyncio.get_running_loop()
    output = asyncio.StreamReader()
    read_end, write_end = os.pipe()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", 0))
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=write_end,
            stderr=write_end,
            env=dict(environment),
            start_new_session=True,
        )
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(write_end)
    return process, output, pipe


async def _answers_health(port: int) -> bool:
    """Whether GET /health at 127.0.0.1:port gives 200 within POLL_TIMEOUT."""
    try:
        async with asyncio.timeout(POLL_TIMEOUT):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"GET /health HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split(b" ")[1:2] == [b"200"]


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


async def _exited(process: asyncio.subprocess.Process, seconds: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End the whole tree now. The launcher does it at end of file; where it cannot, the process group is killed."""
    assert process.stdin is not None
    process.stdin.close()
    if not await _exited(process, KILL_PATIENCE) or _launcher_was_killed(process.returncode):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _launcher_was_killed(returncode: int | None) -> bool:
    """Whether the launcher itself died of a signal: what it passes on of the engine's is 128 + N, never negative."""
    return returncode is not None and returncode < 0


def _now() -> float:
    return asyncio.get_running_loop().time()
